//! The user's sessions, one per service: where they are kept, and how they are renewed when many processes need it at once.

mod keyring;
mod sealed;
mod session;

pub use sealed::{Place, write_private};
pub use session::{Exchange, Session, Sessions, not_logged_in};
