//! rumqttd in a process: for demo and tests only
