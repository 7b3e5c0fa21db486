//! End to end: a harness of real parts and scenarios named as claims
