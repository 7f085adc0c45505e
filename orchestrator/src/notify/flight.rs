//! The deliveries that are under way: so many in all, and fewer of one owner, whose slow receiver must not hold up the others.

use std::collections::HashMap;

use ckrv_core::id::UserId;
use tokio::task::{Id, JoinSet};

const MOST: usize = 32;
const MOST_OF_ONE: usize = 4;

/// Dropped, they are broken off.
#[derive(Debug, Default)]
pub struct Flight {
    tasks: JoinSet<()>,
    owners: HashMap<Id, UserId>,
}

impl Flight {
    pub fn is_full(&self) -> bool {
        self.tasks.len() >= MOST
    }

    pub fn has_room_for(&self, owner: UserId) -> bool {
        self.owners.values().filter(|other| **other == owner).count() < MOST_OF_ONE
    }

    pub fn spawn(&mut self, owner: UserId, delivery: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(delivery).id();
        self.owners.insert(id, owner);
    }

    /// Forgets those that have ended.
    pub fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended);
        }
    }

    /// Waits until all have ended.
    #[cfg(test)]
    pub async fn landed(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.forget(ended);
        }
    }

    fn forget(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a delivery ended badly; it is tried again");
                error.id()
            }
        };
        self.owners.remove(&id);
    }
}
