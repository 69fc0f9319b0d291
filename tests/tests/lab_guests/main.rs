//! Real guests on real hosts in the lab, all over one lab, several tests at a time. A test that stops or breaks what
//! the others stand on asks for the lab alone.

mod bad_input;
mod debian;
mod disks;
mod lifecycle;
mod outlive;
mod standing;
