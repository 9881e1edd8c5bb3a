//! What goes wrong between us and the provider, and what an operator does about it: the real binary against the
//! simulator behind a door that the test can shut.

mod account;
pub mod bench;
mod cancel;
mod clock;
mod fence;
mod found;
mod gone;
mod limits;
mod lost;
mod money;
mod repair;
mod unproven;
mod validation;
