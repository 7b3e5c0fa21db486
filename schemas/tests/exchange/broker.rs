//! A hostile broker between both halves: each lie of the list in each flow, on a model of Keylime and under simulated
//! time. What it may cost is time, and no more of that than it takes itself and two intervals.
//!
//! A run is a pair of devices, each with a bridge's relay of its own, and one broker that can swap what is theirs. A
//! tenth of the runs has a device that was truly tampered with. Then all lies together, for what two of them can do.
//! `make lies` plays the long form, `make test` a short one.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_liar::{Flow, LIES, Table};

use super::play::{About, Play};

/// What all plays came to.
#[derive(Default)]
struct Sum {
    table: Table,
    judged: usize,
    plays: usize,
    slowest: Duration,
    /// Plays in which an operator had to act.
    removed: usize,
    /// Plays of one lie in this flow in which the device was tampered with.
    tampered: BTreeMap<Flow, usize>,
    /// The same of all lies together.
    tampered_together: usize,
    failed: Vec<String>,
}

/// Every lie in every flow in which it can be told, `rounds` times, with what came of it.
fn each(rounds: u64, seed: u64) -> Sum {
    let mut sum = Sum::default();
    for round in 0..rounds {
        for (lie, entry) in LIES.iter().enumerate() {
            for flow in entry.flows {
                let number = seed + round * 10_000 + (lie * 10) as u64 + *flow as u64;
                sum.play(About::One(lie, *flow), number);
            }
        }
    }
    sum
}

/// All lies together, in so many plays.
fn together(about: About, plays: u64, seed: u64) -> Sum {
    let mut sum = Sum::default();
    (seed..seed + plays).for_each(|number| sum.play(about, number));
    sum
}

impl Sum {
    fn play(&mut self, about: About, seed: u64) {
        self.plays += 1;
        let play = || Play::new(about, seed).play();
        let came = std::panic::catch_unwind(play)
            .unwrap_or_else(|_| Err(format!("a panic: {about:?}, seed {seed}")));
        match came {
            Ok(outcome) => {
                self.table.add(&outcome.table);
                self.judged += outcome.judged;
                self.slowest = self.slowest.max(outcome.back);
                self.removed += usize::from(outcome.removed);
                let tampered = match about {
                    About::One(_, flow) => self.tampered.entry(flow).or_default(),
                    About::All | About::AsShipped => &mut self.tampered_together,
                };
                *tampered += usize::from(outcome.tampered);
            }
            Err(failed) => self.failed.push(failed),
        }
    }

    fn add(&mut self, other: Self) {
        self.table.add(&other.table);
        self.judged += other.judged;
        self.plays += other.plays;
        self.slowest = self.slowest.max(other.slowest);
        self.removed += other.removed;
        for (flow, plays) in other.tampered {
            *self.tampered.entry(flow).or_default() += plays;
        }
        self.tampered_together += other.tampered_together;
        self.failed.extend(other.failed);
    }

    fn is_good(&self) {
        let labels: Vec<&str> = self.failed.iter().filter_map(|failed| failed.lines().next()).collect();
        let first = self.failed.first().cloned().unwrap_or_default();
        assert!(labels.is_empty(), "{} of {}: {labels:#?}\n{first}", labels.len(), self.plays);
    }
}

#[test]
fn no_lie_in_any_flow_makes_a_false_pass_or_a_false_fail_and_the_device_passes_within_two_intervals_after() {
    let sum = each(1, number("SEED", 0));
    println!("{}\n{} plays, {} judged, slowest {:?}", sum.table, sum.plays, sum.judged, sum.slowest);
    sum.is_good();
    assert_eq!(sum.table.below(1), [], "lies that were never told");
}

/// The long form: `make lies` runs it, and reads what was counted from the file that `LIES_TABLE` names.
#[test]
#[ignore = "minutes long; make lies runs it"]
fn each_lie_in_each_flow_fifty_times() {
    let mut sum = each(number("LIES_ROUNDS", 20), number("SEED", 0));
    let below = sum.table.below(50);
    let together = together(About::All, number("LIES_TOGETHER", 20_000), number("SEED", 0));
    let as_shipped = self::together(About::AsShipped, number("LIES_TOGETHER", 20_000), number("SEED", 0));
    println!("{} plays of one lie, {} of all lies together", sum.plays, together.plays + as_shipped.plays);
    sum.add(together);
    sum.add(as_shipped);
    println!("{} attestations judged, {} lies told", sum.judged, sum.table.total());
    println!("the slowest device was back {:?} after the last lie", sum.slowest);
    println!(
        "tampered with: in {:?} plays of one lie, in {} of all lies together",
        sum.tampered, sum.tampered_together
    );
    println!("in {} plays an operator had to remove a forged registration", sum.removed);
    if let Ok(file) = std::env::var("LIES_TABLE") {
        std::fs::write(file, format!("{}judged\t{}\n", sum.table.to_lines(), sum.judged)).unwrap();
    }
    sum.is_good();
    assert_eq!(below, [], "told less often than fifty times by themselves");
    for flow in Flow::ALL {
        let expected = !matches!(flow, Flow::Enrolment | Flow::Reboot);
        let had = sum.tampered.get(&flow).is_some_and(|plays| *plays > 0);
        assert_eq!(had, expected, "{flow}: devices that were tampered with");
    }
    assert!(sum.tampered_together > 0);
}

#[test]
fn all_lies_together_make_no_false_pass_and_no_false_fail_and_the_device_is_back_as_soon() {
    let sum = together(About::All, number("LIES_TOGETHER", 100), number("SEED", 0));
    println!("{} plays, {} judged, slowest {:?}", sum.plays, sum.judged, sum.slowest);
    sum.is_good();
}

#[test]
fn with_the_waits_that_are_shipped_a_device_that_passed_lately_is_back_as_soon() {
    let sum = together(About::AsShipped, number("LIES_TOGETHER", 100), number("SEED", 0));
    println!("{} plays, {} judged, slowest {:?}", sum.plays, sum.judged, sum.slowest);
    sum.is_good();
}

/// One play of the long form again, by the seed that it was told with: `PLAY=40064`, and the `SEED` of the whole. One of all
/// lies together is `SEED=1239 LIES_TOGETHER=1` with the test above.
#[test]
#[ignore = "for a seed that failed"]
fn one_play_again() {
    let Ok(seed) = std::env::var("PLAY").unwrap_or_default().parse::<u64>() else { return };
    let place = seed - number("SEED", 0);
    let lie = usize::try_from(place % 10_000 / 10).unwrap();
    let flow = *LIES[lie].flows.iter().find(|flow| **flow as u64 == place % 10).unwrap();
    if let Err(failed) = Play::new(About::One(lie, flow), seed).play() {
        panic!("{failed}");
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
