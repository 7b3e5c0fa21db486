//! How a client connects to a broker, and the driver around rumqttc
