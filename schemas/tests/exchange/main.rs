//! Both halves of the exchange in one test, under simulated time: every single fault at every step of every flow,
//! then seeded combinations, and the lies that a network can tell.

mod device;
mod flows;
mod keylime;
mod lies;
mod world;
