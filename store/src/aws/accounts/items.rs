//! Account records as items: the record as JSON, and beside it the attributes that conditions look at. Where both say something, the
//! attribute is the truth: it can be changed without reading the record first.

use ckrv_core::id::UserId;
use ckrv_core::wire::WorkerInfo;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::account_store::{
    AccessToken, AuditRecord, Credential, DeviceLogin, DeviceState, Login, RefreshFamily, Secret, ServiceToken, User,
    WORKER_MEMORY,
};
use crate::aws::table::{
    Item, META, PK, RECORD, SK, TTL, key, number, number_of, sha256_hex, string, text_of, to_json, ttl, user_key,
};
use crate::error::StoreError;

pub(super) const PROFILE: &str = "PROFILE";
/// What a conditional replacement expects: a family's current token, a device login's state. Empty on a revoked family.
pub(super) const GUARD: &str = "guard";
/// Nanoseconds since 1970.
pub(super) const LAST_USED: &str = "last_used";
/// The hash that a pointer leads to.
pub(super) const TARGET: &str = "target";

pub(super) const CREDENTIAL: &str = "C#";
pub(super) const SECRET: &str = "S#";
pub(super) const FAMILY: &str = "F#";
pub(super) const SERVICE: &str = "K#";

pub(super) fn token_key(sha256: &str) -> Item {
    key(format!("T#{sha256}"), META)
}

pub(super) fn family_key(id: &str) -> Item {
    key(format!("F#{id}"), META)
}

pub(super) fn device_key(sha256: &str) -> Item {
    key(format!("D#{sha256}"), META)
}

pub(super) fn user_code_key(hmac: &str) -> Item {
    key(format!("UC#{hmac}"), META)
}

pub(super) fn service_key(sha256: &str) -> Item {
    key(format!("K#{sha256}"), META)
}

pub(super) fn login_key(login: &Login) -> Item {
    key(format!("IDP#{}", sha256_hex(format!("{}\0{}", login.issuer, login.subject))), META)
}

/// Something of a user, by a prefix and a name.
pub(super) fn owned_key(owner: UserId, prefix: &str, name: &str) -> Item {
    key(user_key(owner), format!("{prefix}{name}"))
}

pub(super) fn audit_partition(day: &str) -> String {
    format!("AUDIT#{day}")
}

pub(super) fn of_user(user: &User) -> Result<Item, StoreError> {
    with_record(key(user_key(user.id), PROFILE), user)
}

pub(super) fn of_login(login: &Login, user: UserId) -> Result<Item, StoreError> {
    with_record(login_key(login), &user)
}

pub(super) fn of_token(token: &AccessToken) -> Result<Item, StoreError> {
    Ok(until(with_record(token_key(&token.sha256), token)?, Some(token.expires_at)))
}

pub(super) fn of_family(family: &RefreshFamily) -> Result<Item, StoreError> {
    let mut item = until(with_record(family_key(&family.id), family)?, Some(family.expires_at));
    // No token's hash is empty, so nobody rotates a revoked family.
    let guard = if family.revoked { "" } else { &family.current_sha256 };
    item.insert(GUARD.to_owned(), string(guard));
    Ok(item)
}

pub(super) fn pointer_to_family(family: &RefreshFamily) -> Item {
    until(owned_key(family.user, FAMILY, &family.id), Some(family.expires_at))
}

pub(super) fn of_device(login: &DeviceLogin) -> Result<Item, StoreError> {
    let mut item = until(with_record(device_key(&login.device_sha256), login)?, Some(login.expires_at));
    item.insert(GUARD.to_owned(), string(guard_of(login.state)));
    Ok(item)
}

pub(super) fn pointer_to_device(login: &DeviceLogin) -> Item {
    let mut item = until(user_code_key(&login.user_code_hmac), Some(login.expires_at));
    item.insert(TARGET.to_owned(), string(&login.device_sha256));
    item
}

pub(super) fn of_service_token(token: &ServiceToken) -> Result<Item, StoreError> {
    let item = until(with_record(service_key(&token.sha256), token)?, token.expires_at);
    Ok(used(item, token.last_used_at))
}

pub(super) fn pointer_to_service_token(token: &ServiceToken) -> Item {
    let mut item = until(owned_key(token.owner, SERVICE, &token.id), token.expires_at);
    item.insert(TARGET.to_owned(), string(&token.sha256));
    item
}

pub(super) fn of_credential(owner: UserId, credential: &Credential) -> Result<Item, StoreError> {
    Ok(used(with_record(owned_key(owner, CREDENTIAL, &credential.name), credential)?, credential.last_used_at))
}

pub(super) fn of_secret(owner: UserId, secret: &Secret) -> Result<Item, StoreError> {
    Ok(used(with_record(owned_key(owner, SECRET, &secret.name), secret)?, secret.last_used_at))
}

/// In the day's partition, in order of time, then id.
pub(super) fn of_audit(record: &AuditRecord) -> Result<Item, StoreError> {
    let day = record.at.strftime("%Y-%m-%d").to_string();
    with_record(key(audit_partition(&day), format!("{:017}#{}", record.at.as_microsecond(), record.id)), record)
}

pub(super) const WORKERS: &str = "WORKERS";

pub(super) fn of_worker(worker: &WorkerInfo) -> Result<Item, StoreError> {
    Ok(until(with_record(key(WORKERS, &worker.instance), worker)?, Some(worker.last_seen + WORKER_MEMORY)))
}

pub(super) fn guard_of(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Approved => "approved",
        DeviceState::Denied => "denied",
        DeviceState::Used => "used",
    }
}

fn with_record(mut key: Item, record: &impl Serialize) -> Result<Item, StoreError> {
    key.insert(RECORD.to_owned(), string(to_json(record)?));
    Ok(key)
}

fn until(mut item: Item, expires: Option<Timestamp>) -> Item {
    item.extend(expires.map(|at| (TTL.to_owned(), ttl(at))));
    item
}

fn used(mut item: Item, last: Option<Timestamp>) -> Item {
    item.extend(last.map(|at| (LAST_USED.to_owned(), number(at.as_nanosecond()))));
    item
}

/// A record as it is read from its item.
pub(super) trait Stored: DeserializeOwned {
    /// Takes over what the attributes say.
    fn overlay(self, _: &Item) -> Self {
        self
    }
}

impl Stored for User {}
impl Stored for UserId {}
impl Stored for AccessToken {}
impl Stored for DeviceLogin {}
impl Stored for AuditRecord {}
impl Stored for WorkerInfo {}
impl Stored for crate::account_store::LedgerEntry {}

impl Stored for RefreshFamily {
    fn overlay(self, item: &Item) -> Self {
        Self { revoked: is_revoked(item), ..self }
    }
}

impl Stored for ServiceToken {
    fn overlay(self, item: &Item) -> Self {
        Self { last_used_at: last_used(item), ..self }
    }
}

impl Stored for Credential {
    fn overlay(self, item: &Item) -> Self {
        Self { last_used_at: last_used(item), ..self }
    }
}

impl Stored for Secret {
    fn overlay(self, item: &Item) -> Self {
        Self { last_used_at: last_used(item), ..self }
    }
}

pub(super) fn is_revoked(family: &Item) -> bool {
    text_of(family, GUARD).is_none_or(str::is_empty)
}

fn last_used(item: &Item) -> Option<Timestamp> {
    number_of(item, LAST_USED).and_then(|at| Timestamp::from_nanosecond(at).ok())
}

pub(super) fn read<T: Stored>(item: &Item) -> Result<T, StoreError> {
    match serde_json::from_str::<T>(text_of(item, RECORD).unwrap_or_default()) {
        Ok(record) => Ok(record.overlay(item)),
        Err(error) => Err(StoreError::Unreadable { name: name_of(item), reason: error.to_string() }),
    }
}

/// Those that can be read: one damaged record must not hide a user's other ones.
pub(super) fn read_all<T: Stored>(items: &[Item]) -> Vec<T> {
    let readable = |item| match read(item) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(error = crate::chain(&error), "a record is left out of a list");
            None
        }
    };
    items.iter().filter_map(readable).collect()
}

/// Says which item it is; of a hash, a part is enough.
fn name_of(item: &Item) -> String {
    let part = |name| text_of(item, name).unwrap_or_default().chars().take(40).collect::<String>();
    format!("{}/{}", part(PK), part(SK))
}
