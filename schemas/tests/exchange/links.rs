//! Links that are slow, or away for hours.

use std::collections::BTreeMap;
use std::time::Duration;

use keylime_mqtt_schemas::messages::{Question, Verdict};

use super::device::{Device, dense_log};
use super::keylime::{INTERVAL, Policy};
use super::world::{SlowLink, World};

/// NB-IoT where it barely reaches: 10 kbit/s, 800 ms one way, and as long again for what TCP has to repeat.
const NB_IOT: SlowLink =
    SlowLink { one_way: Duration::from_millis(1600), bytes_a_second: 1250, up_free: Duration::ZERO };

#[test]
fn a_cut_of_hours_is_a_timeout_and_no_fail_and_the_device_passes_within_two_intervals_of_its_end() {
    for hours in [1, 6, 48] {
        let mut world =
            World::new(Device::new("device-1", 1), Policy { ima: false, uefi: false }, BTreeMap::new());
        assert!(world.run_until(Duration::from_secs(300), |world| world.passes() == 2));
        world.disconnect();
        let (asked, cut) = (world.asked_device.len(), world.now);
        let back = cut + Duration::from_secs(hours * 3600);
        world.run_until(back, |_| false);
        world.now = back;
        assert_eq!(world.verdicts().last(), Some(&Verdict::Timeout), "after {hours} hours");
        let questions = world.asked_device.len() - asked;
        // until it is overdue, and then no more
        assert!(questions < 16, "{questions} questions to a device that is away");
        world.connect();
        let passes = world.run_until(back + INTERVAL * 2, |world| world.passes_since(back) > 0);
        assert!(passes, "after {hours} hours: {}", world.tail());
        assert!(!world.verdicts().contains(&Verdict::Fail));
        assert_eq!(world.keylime.foreign_nonces, 0);
    }
}

#[test]
fn on_a_slow_link_no_question_is_repeated_before_its_answer_can_have_come() {
    for (ima_lines, uefi_bytes) in [(0, 0), (5000, 0), (0, 100_000), (5000, 100_000)] {
        let mut device = Device::new("device-1", 1);
        if ima_lines > 0 {
            device.grow(ima_lines);
        }
        device.uefi = (uefi_bytes > 0).then(|| dense_log(uefi_bytes));
        let mut world =
            World::new(device, Policy { ima: ima_lines > 0, uefi: uefi_bytes > 0 }, BTreeMap::new());
        world.slow = Some(NB_IOT);
        let limit = Duration::from_secs(1000);
        assert!(world.run_until(limit, |world| world.passes() == 3), "{}", world.tail());
        let mut asked: Vec<&Question> = Vec::new();
        for (question, _) in &world.asked_device {
            let again =
                matches!(question, Question::Need(_) | Question::Challenge(_)) && asked.contains(&question);
            assert!(!again, "asked twice: {question:?}\n{}", world.tail());
            asked.push(question);
        }
    }
}
