//! Both halves of the exchange in one test, under simulated time: every single fault at every step of every flow,
//! then seeded combinations, and the lies that a network can tell.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a model that cannot go on should end the test"
)]

mod answers;
mod attest;
mod bounds;
mod broker;
mod cost;
mod device;
mod flows;
mod group;
mod hand;
mod hello;
mod keylime;
mod lean;
mod lies;
mod links;
mod logs;
mod modest;
mod play;
mod review;
mod standing;
mod unanswered;
mod world;
