//! keylime-mqtt-bridge

use clap::Parser as _;
use keylime_mqtt_bridge::Cli;
use std::process::ExitCode;

/// On one thread: what a message costs is mostly the waking of another. What computes for long goes to threads of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Cli::parse().execute().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("keylime-mqtt-bridge: {error}");
            ExitCode::FAILURE
        }
    }
}
