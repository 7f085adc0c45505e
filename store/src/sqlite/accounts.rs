//! Users, tokens, device logins, credentials and secrets: one table, as in the cloud's store.

use async_trait::async_trait;
use ckrv_core::id::UserId;
use ckrv_core::wire::WorkerInfo;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fault::{Bad, Fault, Place};
use super::job_rows::{micros, to_json};
use super::{SqliteStore, usage};
use crate::account_store::{
    AccessToken, AccountStore, AuditRecord, Credential, DeviceLogin, DeviceState, LedgerEntry, Login, MonthUsage, Put,
    RefreshFamily, Secret, ServiceToken, User, WORKER_MEMORY,
};
use crate::error::StoreError;

const USER: &str = "user";
const TOKEN: &str = "token";
const FAMILY: &str = "family";
const DEVICE: &str = "device";
const CREDENTIAL: &str = "credential";
const SECRET: &str = "secret";
const LOGIN: &str = "login";
const SERVICE: &str = "service";
const WORKER: &str = "worker";

/// One row of `accounts`.
struct Item {
    kind: &'static str,
    owner: String,
    name: String,
    guard: String,
    link: String,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    record: String,
}

impl Item {
    fn new(kind: &'static str, name: &str, created_at: Timestamp, record: &impl Serialize) -> Result<Self, StoreError> {
        let record = to_json(record)?;
        let (owner, guard, link) = Default::default();
        Ok(Self { kind, owner, name: name.to_owned(), guard, link, created_at, expires_at: None, record })
    }

    fn of_user(user: &User) -> Result<Self, StoreError> {
        Self::new(USER, &user.id.to_string(), user.created_at, user)
    }

    fn of_token(token: &AccessToken) -> Result<Self, StoreError> {
        let item = Self::new(TOKEN, &token.sha256, token.expires_at, token)?;
        Ok(Self { link: token.family.clone(), expires_at: Some(token.expires_at), ..item })
    }

    fn of_family(family: &RefreshFamily) -> Result<Self, StoreError> {
        let item = Self::new(FAMILY, &family.id, family.created_at, family)?;
        let link = family.user.to_string();
        // No token's hash is empty, so nobody rotates a revoked family.
        let guard = if family.revoked { String::new() } else { family.current_sha256.clone() };
        Ok(Self { guard, link, expires_at: Some(family.expires_at), ..item })
    }

    fn of_device(login: &DeviceLogin) -> Result<Self, StoreError> {
        let item = Self::new(DEVICE, &login.device_sha256, login.created_at, login)?;
        let link = login.user_code_hmac.clone();
        Ok(Self { guard: guard_of(login.state).to_owned(), link, expires_at: Some(login.expires_at), ..item })
    }

    fn of_credential(owner: UserId, credential: &Credential) -> Result<Self, StoreError> {
        let item = Self::new(CREDENTIAL, &credential.name, credential.created_at, credential)?;
        Ok(Self { owner: owner.to_string(), ..item })
    }

    fn of_secret(owner: UserId, secret: &Secret) -> Result<Self, StoreError> {
        let item = Self::new(SECRET, &secret.name, secret.created_at, secret)?;
        Ok(Self { owner: owner.to_string(), ..item })
    }

    fn of_service_token(token: &ServiceToken) -> Result<Self, StoreError> {
        let item = Self::new(SERVICE, &token.id, token.created_at, token)?;
        let owner = token.owner.to_string();
        Ok(Self { owner, link: token.sha256.clone(), expires_at: token.expires_at, ..item })
    }

    fn of_worker(worker: &WorkerInfo) -> Result<Self, StoreError> {
        let item = Self::new(WORKER, &worker.instance, worker.started_at, worker)?;
        Ok(Self { expires_at: Some(worker.last_seen + WORKER_MEMORY), ..item })
    }

    fn of_login(login: &Login, user: UserId) -> Result<Self, StoreError> {
        Self::new(LOGIN, &login_name(login), Timestamp::UNIX_EPOCH, &user)
    }

    /// Inserts the row, or does what `conflict` says; gives whether a row was written.
    fn store(&self, connection: &Connection, conflict: &str) -> rusqlite::Result<bool> {
        let sql = format!(
            "INSERT INTO accounts (kind, owner, name, guard, link, created_at, expires_at, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (kind, owner, name) DO {conflict}"
        );
        let written = connection.prepare_cached(&sql)?.execute(params![
            self.kind,
            self.owner,
            self.name,
            self.guard,
            self.link,
            micros(self.created_at),
            self.expires_at.map(micros),
            self.record
        ])?;
        Ok(written > 0)
    }

    fn put(&self, connection: &Connection) -> rusqlite::Result<bool> {
        self.store(
            connection,
            "UPDATE SET guard = excluded.guard, link = excluded.link, expires_at = excluded.expires_at, record = excluded.record",
        )
    }

    fn put_new(&self, connection: &Connection) -> rusqlite::Result<Put> {
        Ok(if self.store(connection, "NOTHING")? { Put::Done } else { Put::Exists })
    }

    /// Replaces the row only while its guard is `expected`.
    fn replace(&self, connection: &Connection, expected: &str) -> rusqlite::Result<bool> {
        let replaced = connection
            .prepare_cached(
                "UPDATE accounts SET guard = ?4, link = ?5, expires_at = ?6, record = ?7
                 WHERE kind = ?1 AND owner = ?2 AND name = ?3 AND guard = ?8 AND guard <> ''",
            )?
            .execute(params![
                self.kind,
                self.owner,
                self.name,
                self.guard,
                self.link,
                self.expires_at.map(micros),
                self.record,
                expected
            ])?;
        Ok(replaced > 0)
    }
}

/// Issuer and subject as one name; neither can hold a line end.
fn login_name(login: &Login) -> String {
    format!("{}\n{}", login.issuer, login.subject)
}

fn guard_of(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Pending => "pending",
        DeviceState::Approved => "approved",
        DeviceState::Denied => "denied",
        DeviceState::Used => "used",
    }
}

/// Reads the row `(owner, name, record)`.
fn decode<T: DeserializeOwned>(kind: &'static str, row: &Row<'_>) -> rusqlite::Result<Result<T, Bad>> {
    let content = row.get_ref(2)?.as_bytes()?;
    let place = Place::Account { kind, owner: row.get(0)?, name: row.get(1)? };
    Ok(serde_json::from_slice(content).map_err(|error| Bad { place, reason: error.to_string(), content: content.to_vec() }))
}

fn get<T: DeserializeOwned>(connection: &Connection, kind: &'static str, owner: &str, name: &str) -> Result<Option<T>, Fault> {
    let row = connection
        .prepare_cached("SELECT owner, name, record FROM accounts WHERE kind = ?1 AND owner = ?2 AND name = ?3")?
        .query_row(params![kind, owner, name], |row| decode(kind, row))
        .optional()?;
    Ok(row.transpose()?)
}

fn list<T: DeserializeOwned>(connection: &Connection, kind: &'static str, owner: &str) -> Result<Vec<Result<T, Bad>>, Fault> {
    let mut statement =
        connection.prepare_cached("SELECT owner, name, record FROM accounts WHERE kind = ?1 AND owner = ?2 ORDER BY name")?;
    let rows = statement.query_map(params![kind, owner], |row| decode(kind, row))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The newest row with this link.
fn linked<T: DeserializeOwned>(connection: &Connection, kind: &'static str, link: &str) -> Result<Option<T>, Fault> {
    let row = connection
        .prepare_cached(
            "SELECT owner, name, record FROM accounts WHERE kind = ?1 AND link = ?2 AND link <> '' ORDER BY created_at DESC LIMIT 1",
        )?
        .query_row(params![kind, link], |row| decode(kind, row))
        .optional()?;
    Ok(row.transpose()?)
}

fn delete(connection: &Connection, kind: &'static str, owner: &str, name: &str) -> rusqlite::Result<bool> {
    let deleted = connection
        .prepare_cached("DELETE FROM accounts WHERE kind = ?1 AND owner = ?2 AND name = ?3")?
        .execute(params![kind, owner, name])?;
    Ok(deleted > 0)
}

impl SqliteStore {
    async fn put_item(&self, item: Result<Item, StoreError>) -> Result<(), StoreError> {
        let item = item?;
        self.write("storing an account record", move |connection, _| Ok(Ok(item.put(connection).map(drop)?))).await
    }

    async fn put_new_item(&self, item: Result<Item, StoreError>) -> Result<Put, StoreError> {
        let item = item?;
        self.write("storing an account record", move |connection, _| Ok(Ok(item.put_new(connection)?))).await
    }

    async fn replace_item(&self, item: Result<Item, StoreError>, expected: &str) -> Result<bool, StoreError> {
        let (item, expected) = (item?, expected.to_owned());
        self.write("replacing an account record", move |connection, _| Ok(Ok(item.replace(connection, &expected)?))).await
    }

    async fn item<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: &'static str,
        owner: Option<UserId>,
        name: &str,
    ) -> Result<Option<T>, StoreError> {
        let (owner, name) = (owner.map(|id| id.to_string()).unwrap_or_default(), name.to_owned());
        self.read("reading an account record", move |connection| get(connection, kind, &owner, &name)).await
    }

    async fn items<T: DeserializeOwned + Send + 'static>(
        &self,
        kind: &'static str,
        owner: Option<UserId>,
    ) -> Result<Vec<T>, StoreError> {
        let owner = owner.map(|id| id.to_string()).unwrap_or_default();
        self.read_all("listing account records", move |connection| list(connection, kind, &owner)).await
    }

    async fn delete_item(&self, kind: &'static str, owner: UserId, name: &str) -> Result<bool, StoreError> {
        let (owner, name) = (owner.to_string(), name.to_owned());
        self.write("deleting an account record", move |connection, _| Ok(Ok(delete(connection, kind, &owner, &name)?))).await
    }
}

#[async_trait]
impl AccountStore for SqliteStore {
    async fn put_user(&self, user: &User) -> Result<(), StoreError> {
        self.put_item(Item::of_user(user)).await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.item(USER, None, &id.to_string()).await
    }

    async fn users(&self) -> Result<Vec<User>, StoreError> {
        self.items(USER, None).await
    }

    async fn quota_used(&self, user: UserId, month: &str) -> Result<u32, StoreError> {
        let month = month.to_owned();
        self.read("reading a quota", move |connection| {
            let used = connection
                .prepare_cached("SELECT used FROM quota WHERE owner = ?1 AND month = ?2")?
                .query_row(params![user.to_string(), month], |row| row.get(0))
                .optional()?;
            Ok(used.unwrap_or(0))
        })
        .await
    }

    async fn month_usage(&self, user: UserId, month: &str) -> Result<MonthUsage, StoreError> {
        let month = month.to_owned();
        self.read("reading a month's usage", move |connection| usage::month_usage(connection, user, &month)).await
    }

    async fn ledger(&self, month: &str) -> Result<Vec<LedgerEntry>, StoreError> {
        let month = month.to_owned();
        self.read("reading the ledger", move |connection| usage::ledger(connection, &month)).await
    }

    async fn user_by_login(&self, login: &Login) -> Result<Option<UserId>, StoreError> {
        self.item(LOGIN, None, &login_name(login)).await
    }

    async fn link_login(&self, login: &Login, user: UserId) -> Result<Put, StoreError> {
        self.put_new_item(Item::of_login(login, user)).await
    }

    async fn families_of(&self, user: UserId) -> Result<Vec<RefreshFamily>, StoreError> {
        let families: Vec<RefreshFamily> = self
            .read_all("listing a user's logins", move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT owner, name, record FROM accounts WHERE kind = ?1 AND link = ?2 AND link <> '' ORDER BY created_at, name",
                )?;
                let rows = statement.query_map(params![FAMILY, user.to_string()], |row| decode(FAMILY, row))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        Ok(families.into_iter().filter(|family| !family.revoked).collect())
    }

    async fn put_service_token(&self, token: &ServiceToken) -> Result<Put, StoreError> {
        self.put_new_item(Item::of_service_token(token)).await
    }

    async fn service_token(&self, sha256: &str) -> Result<Option<ServiceToken>, StoreError> {
        let sha256 = sha256.to_owned();
        self.read("reading a service token", move |connection| linked(connection, SERVICE, &sha256)).await
    }

    async fn service_tokens(&self, owner: UserId) -> Result<Vec<ServiceToken>, StoreError> {
        let mut tokens: Vec<ServiceToken> = self.items(SERVICE, Some(owner)).await?;
        tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(tokens)
    }

    async fn delete_service_token(&self, owner: UserId, id: &str) -> Result<bool, StoreError> {
        self.delete_item(SERVICE, owner, id).await
    }

    async fn service_token_used(&self, token: &ServiceToken, at: Timestamp) -> Result<(), StoreError> {
        if token.last_used_at.is_some_and(|last| at.duration_since(last) < jiff::SignedDuration::from_mins(1)) {
            return Ok(());
        }
        let (owner, id) = (token.owner.to_string(), token.id.clone());
        self.write("noting a service token's use", move |connection, _| {
            // A token that was deleted in between stays deleted.
            if let Some(mut token) = get::<ServiceToken>(connection, SERVICE, &owner, &id)? {
                token.last_used_at = token.last_used_at.max(Some(at));
                Item::of_service_token(&token)?.put(connection)?;
            }
            Ok(Ok(()))
        })
        .await
    }

    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError> {
        let (at, id, text) = (record.at, record.id.clone(), to_json(record)?);
        self.write("writing an audit record", move |connection, _| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO audit (day, at, id, record) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![at.strftime("%Y-%m-%d").to_string(), micros(at), id, text])?;
            Ok(Ok(()))
        })
        .await
    }

    async fn audit_of(&self, day: &str) -> Result<Vec<AuditRecord>, StoreError> {
        let day = day.to_owned();
        self.read("reading audit records", move |connection| {
            let mut statement = connection.prepare_cached("SELECT record FROM audit WHERE day = ?1 ORDER BY at, id")?;
            let rows = statement.query_map([day], |row| row.get::<_, String>(0))?;
            let mut records = Vec::new();
            for row in rows {
                let read = serde_json::from_str(&row?);
                records.push(read.map_err(|error| StoreError::backend("reading an audit record", error))?);
            }
            Ok(records)
        })
        .await
    }

    async fn put_access_token(&self, token: &AccessToken) -> Result<(), StoreError> {
        let (item, family) = (Item::of_token(token)?, token.family.clone());
        self.write("storing an access token", move |connection, _| {
            // Revoked while the token was on its way: then it is never good.
            let family: Option<RefreshFamily> = get(connection, FAMILY, "", &family)?;
            if !family.is_some_and(|family| family.revoked) {
                item.put(connection)?;
            }
            Ok(Ok(()))
        })
        .await
    }

    async fn access_token(&self, sha256: &str) -> Result<Option<AccessToken>, StoreError> {
        self.item(TOKEN, None, sha256).await
    }

    async fn put_family(&self, family: &RefreshFamily) -> Result<(), StoreError> {
        self.put_item(Item::of_family(family)).await
    }

    async fn family(&self, id: &str) -> Result<Option<RefreshFamily>, StoreError> {
        self.item(FAMILY, None, id).await
    }

    async fn rotate_family(&self, family: &RefreshFamily, expected_current: &str) -> Result<bool, StoreError> {
        self.replace_item(Item::of_family(family), expected_current).await
    }

    async fn revoke_family(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write("revoking a login", move |connection, _| {
            connection.prepare_cached("DELETE FROM accounts WHERE kind = ?1 AND link = ?2")?.execute(params![TOKEN, id])?;
            if let Some(family) = get::<RefreshFamily>(connection, FAMILY, "", &id)? {
                Item::of_family(&RefreshFamily { revoked: true, ..family })?.put(connection)?;
            }
            Ok(Ok(()))
        })
        .await
    }

    async fn put_device(&self, login: &DeviceLogin) -> Result<(), StoreError> {
        self.put_item(Item::of_device(login)).await
    }

    async fn device(&self, device_sha256: &str) -> Result<Option<DeviceLogin>, StoreError> {
        self.item(DEVICE, None, device_sha256).await
    }

    async fn device_by_user_code(&self, user_code_hmac: &str) -> Result<Option<DeviceLogin>, StoreError> {
        let code = user_code_hmac.to_owned();
        self.read("reading a device login", move |connection| linked(connection, DEVICE, &code)).await
    }

    async fn update_device(&self, login: &DeviceLogin, expected: DeviceState) -> Result<bool, StoreError> {
        self.replace_item(Item::of_device(login), guard_of(expected)).await
    }

    async fn put_credential(&self, owner: UserId, credential: &Credential) -> Result<Put, StoreError> {
        self.put_new_item(Item::of_credential(owner, credential)).await
    }

    async fn credential(&self, owner: UserId, name: &str) -> Result<Option<Credential>, StoreError> {
        self.item(CREDENTIAL, Some(owner), name).await
    }

    async fn credentials(&self, owner: UserId) -> Result<Vec<Credential>, StoreError> {
        self.items(CREDENTIAL, Some(owner)).await
    }

    async fn delete_credential(&self, owner: UserId, name: &str) -> Result<bool, StoreError> {
        self.delete_item(CREDENTIAL, owner, name).await
    }

    async fn credential_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write("noting a credential's use", move |connection, _| {
            if let Some(mut credential) = get::<Credential>(connection, CREDENTIAL, &owner.to_string(), &name)? {
                credential.last_used_at = credential.last_used_at.max(Some(at));
                Item::of_credential(owner, &credential)?.put(connection)?;
            }
            Ok(Ok(()))
        })
        .await
    }

    async fn put_secret(&self, owner: UserId, secret: &Secret) -> Result<Put, StoreError> {
        self.put_new_item(Item::of_secret(owner, secret)).await
    }

    async fn secret(&self, owner: UserId, name: &str) -> Result<Option<Secret>, StoreError> {
        self.item(SECRET, Some(owner), name).await
    }

    async fn secrets(&self, owner: UserId) -> Result<Vec<Secret>, StoreError> {
        self.items(SECRET, Some(owner)).await
    }

    async fn delete_secret(&self, owner: UserId, name: &str) -> Result<bool, StoreError> {
        self.delete_item(SECRET, owner, name).await
    }

    async fn secret_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write("noting a secret's use", move |connection, _| {
            if let Some(mut secret) = get::<Secret>(connection, SECRET, &owner.to_string(), &name)? {
                secret.last_used_at = secret.last_used_at.max(Some(at));
                Item::of_secret(owner, &secret)?.put(connection)?;
            }
            Ok(Ok(()))
        })
        .await
    }

    async fn put_worker(&self, worker: &WorkerInfo) -> Result<(), StoreError> {
        self.put_item(Item::of_worker(worker)).await
    }

    async fn workers(&self, since: Timestamp) -> Result<Vec<WorkerInfo>, StoreError> {
        let mut workers: Vec<WorkerInfo> = self.items(WORKER, None).await?;
        workers.retain(|worker| worker.last_seen >= since);
        workers.sort_by(|one, other| (&one.name, &one.instance).cmp(&(&other.name, &other.instance)));
        Ok(workers)
    }

    async fn purge_tokens(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write("purging tokens", move |connection, _| {
            connection.prepare_cached("DELETE FROM accounts WHERE expires_at < ?1")?.execute([micros(now)])?;
            Ok(Ok(()))
        })
        .await
    }
}
