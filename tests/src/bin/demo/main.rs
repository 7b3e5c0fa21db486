//! The demo: a small fleet attests before your eyes, and one device is caught.
//!
//! Real parts all the way: Keylime's registrar, verifier and `keylime_tenant`, an swtpm per device, agent and
//! bridge as shipped, and the embedded broker over TLS. `ONCE=1` runs it through once and exits with 0 only if
//! what should pass passed and what should fail failed. Ctrl-C ends everything, by the guard of
//! [`keylime_mqtt_tests::process`].

// A table for a person is what this program is for.
#![allow(clippy::print_stdout)]

mod fleet;
mod table;

use anyhow::{Result, ensure};
use fleet::Fleet;
use keylime_mqtt_schemas::messages::Verdict;
use keylime_mqtt_tests::broker::BrokerKind;
use keylime_mqtt_tests::eventually::PATIENCE;
use keylime_mqtt_tests::world::{FOREIGN_PROGRAM, World, WorldSettings};
use std::time::{Duration, Instant};
use table::Table;

/// How long a viewer sees all devices pass before one is tampered with.
const CALM: Duration = Duration::from_secs(15);

/// The same without a viewer: a few attestations of each device.
const CALM_ONCE: Duration = Duration::from_secs(8);

/// Between two looks at what happened.
const TICK: Duration = Duration::from_millis(250);

fn main() -> Result<()> {
    let once = std::env::var_os("ONCE").is_some_and(|value| !value.is_empty() && value != "0");
    end_on_ctrl_c()?;
    let started = Instant::now();
    step("starting Keylime (registrar, verifier in push mode), the embedded broker over TLS, and the bridge");
    let world = World::start(&WorldSettings { broker: BrokerKind::Embedded, ..WorldSettings::default() })?;
    step("booting three devices, each with a TPM of its own (swtpm), and enrolling them with keylime_tenant");
    let mut fleet = Fleet::boot(&world)?;
    let mut table = Table::new(&world, &fleet)?;

    table.watch_until(PATIENCE, "every device passes", Table::all_pass)?;
    step(&format!("all pass, {:.1} s after the start", started.elapsed().as_secs_f64()));
    table.watch_for(if once { CALM_ONCE } else { CALM })?;

    let victim = fleet.victim()?;
    step(&format!("{FOREIGN_PROGRAM}, which its policy does not allow, now runs on {}", victim.id()));
    victim.run_program(FOREIGN_PROGRAM)?;
    let id = victim.id().to_owned();
    table.watch_until(PATIENCE, "the tampered device fails", |table| {
        table.verdict(&id) == Some(Verdict::Fail)
    })?;
    step(&format!("{id} fails. The operator reads in the verifier's log:"));
    println!("    {}", cause(&world.keylime.verifier_log()));

    if once {
        table.watch_for(CALM_ONCE)?;
        ensure!(table.all_pass_but(&id), "another device than {id} does not pass");
        fleet.confirm_with_operator(&world)?;
        step("as it should be: keylime_tenant -c cvstatus agrees with the table");
        println!("{}", table.summary());
        return Ok(());
    }
    step("it goes on until Ctrl-C");
    loop {
        table.watch_for(PATIENCE)?;
    }
}

/// Keylime's line about the program, or where to look for one.
fn cause(log: &str) -> &str {
    let line = log.lines().rfind(|line| line.contains(FOREIGN_PROGRAM));
    line.and_then(|line| line.split_once(" - keylime.")).map_or("nothing yet", |(_, text)| text)
}

fn step(text: &str) {
    println!("==> {text}");
}

/// On Ctrl-C this process ends at once, and the guard ends all others and removes their files.
fn end_on_ctrl_c() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            println!("\n==> ending everything");
            std::process::exit(0);
        }
    });
    Ok(())
}
