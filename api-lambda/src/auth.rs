//! Login of clients: device flow, tokens, refresh, and the page on which the owner confirms.

pub(crate) mod activate;
pub(crate) mod device;
pub(crate) mod forms;
pub(crate) mod keys;
pub(crate) mod oidc;
pub(crate) mod owner_code;
pub(crate) mod page;
pub(crate) mod rate;
pub(crate) mod refresh;
pub(crate) mod revoke;
pub(crate) mod tokens;
