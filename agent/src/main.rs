//! `keylime-mqtt-agent`: attests this device to Keylime through an MQTT broker.

use std::process::ExitCode;

use clap::Parser;
use keylime_mqtt_agent::cli::{Cli, exit_code_of};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.execute() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("keylime-mqtt-agent: {error:#}");
            ExitCode::from(exit_code_of(&error))
        }
    }
}
