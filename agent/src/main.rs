//! `keylime-mqtt-agent`: attests this device to Keylime through an MQTT broker.

use std::process::ExitCode;

use clap::Parser;
use keylime_mqtt_agent::cli::{Cli, WRONG_CONFIGURATION, exit_code_of};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let sources = cli.sources();
    match cli.execute() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("keylime-mqtt-agent: {error:#}");
            let code = exit_code_of(&error);
            if code == WRONG_CONFIGURATION {
                eprintln!("{sources}");
            }
            ExitCode::from(code)
        }
    }
}
