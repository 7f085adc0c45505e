//! What a command reaches besides its model: hosts that policy granted. Everything else is refused, with a line in the job's log.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ckrv_core::plan::EgressRule;

use super::Context;
use crate::launch::Egress;
use crate::launch_choice::LauncherChoice;

/// Refusals of one command that are logged: an agent can cause as many as it likes.
const LOGGED: usize = 50;
/// Of a host as the agent wrote it; a name has at most 253 bytes.
const MAX_HOST: usize = 300;

/// The proxy of one command, or none. Where there is no network to begin with it is there even if it lets nothing through, so that the log
/// says what was wanted. Not beside a model's route, unless hosts are granted: not every agent leaves the proxy out for its own machine.
/// `who` is `the agent`, for the log.
pub fn proxy(context: &Context, who: &'static str, granted: &[EgressRule], has_routes: bool) -> Option<Egress> {
    let has_network = matches!(context.view.launcher, LauncherChoice::Process { .. });
    if granted.is_empty() && (has_routes || has_network) {
        return None;
    }
    let (log, refused) = (context.log.clone(), AtomicUsize::new(0));
    let on_denied = move |denied: crate::launch::proxy::Denied| {
        let mut host = denied.host.escape_debug().to_string();
        host.truncate(host.floor_char_boundary(MAX_HOST));
        match refused.fetch_add(1, Ordering::Relaxed) {
            before if before < LOGGED => {
                log.warn("ckrv", format!("{who} was refused a connection: {host}:{} {}", denied.port, denied.reason));
            }
            LOGGED => log.warn("ckrv", format!("{who} was refused further connections, which aren't logged")),
            _ => {}
        }
    };
    Some(Egress { allow: granted.to_vec(), allow_private: false, on_denied: Arc::new(on_denied) })
}
