//! The contract between agent and bridge: messages, topics, codec and the exchange
