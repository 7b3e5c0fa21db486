//! keylime-mqtt-bridge

use clap::Parser as _;
use keylime_mqtt_bridge::Cli;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("keylime-mqtt-bridge: {error}");
            ExitCode::FAILURE
        }
    }
}
