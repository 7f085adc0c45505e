//! Users, tokens, device logins, credentials and secrets in the table. Every read is strongly consistent: what was revoked is refused by
//! the next request.

mod calls;
mod items;

use async_trait::async_trait;
use ckrv_core::id::UserId;
use ckrv_core::wire::WorkerInfo;
use jiff::{SignedDuration, Timestamp};

use self::calls::{delete, get_all, put_any, put_new, replace, set};
use self::items::{CREDENTIAL, FAMILY, GUARD, LAST_USED, PROFILE, SECRET, SERVICE, Stored, TARGET, owned_key, read, read_all};
use super::table::{
    AGENT_MICRO_USD, Item, OVERAGE_JOBS, OVERAGE_MICRO_USD, SK, Table, USED, failed, key, ledger_partition, number, number_of,
    quota_key, string, text_of, user_key,
};
use crate::account_store::{
    AccessToken, AccountStore, AuditRecord, Credential, DeviceLogin, DeviceState, LedgerEntry, Login, MonthUsage, Put,
    RefreshFamily, Secret, ServiceToken, User,
};
use crate::error::StoreError;

const READING: &str = "reading an account record";
const LISTING: &str = "listing account records";
const STORING: &str = "storing an account record";
const REPLACING: &str = "replacing an account record";
const DELETING: &str = "deleting an account record";
const NOTING: &str = "noting the last use";

/// `AccountStore` on the table.
#[derive(Clone, Debug)]
pub(super) struct DynamoAccounts {
    table: Table,
}

impl DynamoAccounts {
    pub(super) fn new(table: Table) -> Self {
        Self { table }
    }

    async fn record<T: Stored>(&self, key: Item) -> Result<Option<T>, StoreError> {
        self.table.get(READING, key).await?.as_ref().map(read).transpose()
    }

    async fn put_new(&self, item: Item) -> Result<Put, StoreError> {
        Ok(done(put_new(&self.table, STORING, vec![item]).await?))
    }

    /// A user's own records of one kind, by name.
    async fn owned<T: Stored>(&self, owner: UserId, prefix: &str) -> Result<Vec<T>, StoreError> {
        Ok(read_all(&self.table.all(LISTING, &user_key(owner), prefix).await?))
    }

    async fn used(&self, owner: UserId, prefix: &str, name: &str, at: Timestamp) -> Result<(), StoreError> {
        let at = number(at.as_nanosecond());
        set(&self.table, NOTING, owned_key(owner, prefix, name), (LAST_USED, at.clone()), Some(at)).await
    }

    /// The hash that a pointer leads to.
    async fn target(&self, pointer: Item) -> Result<Option<String>, StoreError> {
        let found = self.table.get(READING, pointer).await?;
        Ok(found.and_then(|item| text_of(&item, TARGET).map(str::to_owned)))
    }
}

fn done(written: bool) -> Put {
    if written { Put::Done } else { Put::Exists }
}

#[async_trait]
impl AccountStore for DynamoAccounts {
    async fn put_user(&self, user: &User) -> Result<(), StoreError> {
        put_any(&self.table, STORING, vec![items::of_user(user)?]).await
    }

    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.record(key(user_key(id), PROFILE)).await
    }

    /// Reads the whole table. For administrators, whose role alone may.
    async fn users(&self) -> Result<Vec<User>, StoreError> {
        let scan = self.table.client.scan().table_name(&self.table.name).consistent_read(true).filter_expression("#s = :profile");
        let scan = scan.expression_attribute_names("#s", SK).expression_attribute_values(":profile", string(PROFILE));
        let mut found = scan.into_paginator().items().send();
        let mut items = Vec::new();
        while let Some(item) = found.next().await {
            items.push(item.map_err(failed(LISTING))?);
        }
        let mut users: Vec<User> = read_all(&items);
        users.sort_by_key(|user| user.id.to_string());
        Ok(users)
    }

    async fn user_by_login(&self, login: &Login) -> Result<Option<UserId>, StoreError> {
        self.record(items::login_key(login)).await
    }

    async fn link_login(&self, login: &Login, user: UserId) -> Result<Put, StoreError> {
        self.put_new(items::of_login(login, user)?).await
    }

    async fn quota_used(&self, user: UserId, month: &str) -> Result<u32, StoreError> {
        Ok(self.month_usage(user, month).await?.jobs)
    }

    async fn month_usage(&self, user: UserId, month: &str) -> Result<MonthUsage, StoreError> {
        let found = self.table.get("reading a month's usage", key(user_key(user), quota_key(month))).await?.unwrap_or_default();
        Ok(MonthUsage {
            jobs: number_of(&found, USED).unwrap_or_default(),
            overage_jobs: number_of(&found, OVERAGE_JOBS).unwrap_or_default(),
            overage_micro_usd: number_of(&found, OVERAGE_MICRO_USD).unwrap_or_default(),
            agent_micro_usd: number_of(&found, AGENT_MICRO_USD).unwrap_or_default(),
        })
    }

    async fn ledger(&self, month: &str) -> Result<Vec<LedgerEntry>, StoreError> {
        let entries = self.table.all("reading the ledger", &ledger_partition(month), "").await?;
        // Money: what can't be read is an error, not a shorter list.
        entries.iter().map(read).collect()
    }

    async fn put_access_token(&self, token: &AccessToken) -> Result<(), StoreError> {
        put_any(&self.table, STORING, vec![items::of_token(token)?]).await
    }

    /// Reads the token's family, too: a revoked one is one attribute on one item, and no token of it is good from then on, whether it was
    /// stored before or after.
    async fn access_token(&self, sha256: &str) -> Result<Option<AccessToken>, StoreError> {
        let Some(token) = self.record::<AccessToken>(items::token_key(sha256)).await? else { return Ok(None) };
        let family = self.table.get(READING, items::family_key(&token.family)).await?;
        Ok((!family.is_some_and(|family| items::is_revoked(&family))).then_some(token))
    }

    async fn put_family(&self, family: &RefreshFamily) -> Result<(), StoreError> {
        let both = vec![items::of_family(family)?, items::pointer_to_family(family)];
        put_any(&self.table, STORING, both).await
    }

    async fn family(&self, id: &str) -> Result<Option<RefreshFamily>, StoreError> {
        self.record(items::family_key(id)).await
    }

    async fn rotate_family(&self, family: &RefreshFamily, expected_current: &str) -> Result<bool, StoreError> {
        // What a revoked family has for its current token.
        if expected_current.is_empty() {
            return Ok(false);
        }
        replace(&self.table, REPLACING, items::of_family(family)?, expected_current).await
    }

    async fn revoke_family(&self, id: &str) -> Result<(), StoreError> {
        set(&self.table, "revoking a login", items::family_key(id), (GUARD, string("")), None).await
    }

    async fn families_of(&self, user: UserId) -> Result<Vec<RefreshFamily>, StoreError> {
        let pointers = self.table.all(LISTING, &user_key(user), FAMILY).await?;
        let ids = pointers.iter().filter_map(|pointer| text_of(pointer, SK)?.strip_prefix(FAMILY));
        let mut families: Vec<RefreshFamily> = get_all(&self.table, LISTING, ids.map(items::family_key).collect()).await?;
        families.retain(|family| !family.revoked && family.user == user);
        families.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(families)
    }

    async fn put_service_token(&self, token: &ServiceToken) -> Result<Put, StoreError> {
        let both = vec![items::of_service_token(token)?, items::pointer_to_service_token(token)];
        Ok(done(put_new(&self.table, STORING, both).await?))
    }

    async fn service_token(&self, sha256: &str) -> Result<Option<ServiceToken>, StoreError> {
        self.record(items::service_key(sha256)).await
    }

    async fn service_tokens(&self, owner: UserId) -> Result<Vec<ServiceToken>, StoreError> {
        let pointers = self.table.all(LISTING, &user_key(owner), SERVICE).await?;
        let hashes = pointers.iter().filter_map(|pointer| text_of(pointer, TARGET));
        let mut tokens: Vec<ServiceToken> = get_all(&self.table, LISTING, hashes.map(items::service_key).collect()).await?;
        tokens.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(tokens)
    }

    async fn delete_service_token(&self, owner: UserId, id: &str) -> Result<bool, StoreError> {
        let pointer = owned_key(owner, SERVICE, id);
        let Some(sha256) = self.target(pointer.clone()).await? else { return Ok(false) };
        delete(&self.table, DELETING, vec![pointer, items::service_key(&sha256)]).await
    }

    async fn service_token_used(&self, token: &ServiceToken, at: Timestamp) -> Result<(), StoreError> {
        let minute = SignedDuration::from_mins(1);
        if token.last_used_at.is_some_and(|last| at.duration_since(last) < minute) {
            return Ok(());
        }
        // Others read the token before this use was noted, too: the condition lets one of them write.
        let (now, due) = (at.as_nanosecond(), at.as_nanosecond() - minute.as_nanos() + 1);
        set(&self.table, NOTING, items::service_key(&token.sha256), (LAST_USED, number(now)), Some(number(due))).await
    }

    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError> {
        put_any(&self.table, "writing an audit record", vec![items::of_audit(record)?]).await
    }

    async fn audit_of(&self, day: &str) -> Result<Vec<AuditRecord>, StoreError> {
        let found = self.table.all("reading audit records", &items::audit_partition(day), "").await?;
        found.iter().map(read).collect()
    }

    async fn put_device(&self, login: &DeviceLogin) -> Result<(), StoreError> {
        let both = vec![items::of_device(login)?, items::pointer_to_device(login)];
        put_any(&self.table, STORING, both).await
    }

    async fn device(&self, device_sha256: &str) -> Result<Option<DeviceLogin>, StoreError> {
        self.record(items::device_key(device_sha256)).await
    }

    async fn device_by_user_code(&self, user_code_hmac: &str) -> Result<Option<DeviceLogin>, StoreError> {
        let Some(device) = self.target(items::user_code_key(user_code_hmac)).await? else { return Ok(None) };
        self.device(&device).await
    }

    async fn update_device(&self, login: &DeviceLogin, expected: DeviceState) -> Result<bool, StoreError> {
        replace(&self.table, REPLACING, items::of_device(login)?, items::guard_of(expected)).await
    }

    async fn put_credential(&self, owner: UserId, credential: &Credential) -> Result<Put, StoreError> {
        self.put_new(items::of_credential(owner, credential)?).await
    }

    async fn credential(&self, owner: UserId, name: &str) -> Result<Option<Credential>, StoreError> {
        self.record(owned_key(owner, CREDENTIAL, name)).await
    }

    async fn credentials(&self, owner: UserId) -> Result<Vec<Credential>, StoreError> {
        self.owned(owner, CREDENTIAL).await
    }

    async fn delete_credential(&self, owner: UserId, name: &str) -> Result<bool, StoreError> {
        delete(&self.table, DELETING, vec![owned_key(owner, CREDENTIAL, name)]).await
    }

    async fn credential_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError> {
        self.used(owner, CREDENTIAL, name, at).await
    }

    async fn put_secret(&self, owner: UserId, secret: &Secret) -> Result<Put, StoreError> {
        self.put_new(items::of_secret(owner, secret)?).await
    }

    async fn secret(&self, owner: UserId, name: &str) -> Result<Option<Secret>, StoreError> {
        self.record(owned_key(owner, SECRET, name)).await
    }

    async fn secrets(&self, owner: UserId) -> Result<Vec<Secret>, StoreError> {
        self.owned(owner, SECRET).await
    }

    async fn delete_secret(&self, owner: UserId, name: &str) -> Result<bool, StoreError> {
        delete(&self.table, DELETING, vec![owned_key(owner, SECRET, name)]).await
    }

    async fn secret_used(&self, owner: UserId, name: &str, at: Timestamp) -> Result<(), StoreError> {
        self.used(owner, SECRET, name, at).await
    }

    async fn put_worker(&self, worker: &WorkerInfo) -> Result<(), StoreError> {
        put_any(&self.table, "noting a worker", vec![items::of_worker(worker)?]).await
    }

    async fn workers(&self, since: Timestamp) -> Result<Vec<WorkerInfo>, StoreError> {
        let mut workers: Vec<WorkerInfo> = read_all(&self.table.all("listing workers", items::WORKERS, "").await?);
        workers.retain(|worker| worker.last_seen >= since);
        workers.sort_by(|one, other| (&one.name, &one.instance).cmp(&(&other.name, &other.instance)));
        Ok(workers)
    }

    /// DynamoDB deletes by itself what has expired, some time later; until then, whoever reads a record checks its time.
    async fn purge_tokens(&self, _: Timestamp) -> Result<(), StoreError> {
        Ok(())
    }
}
