//! Users, tokens, device logins, credentials, secrets.

use ckrv_core::id::UserId;
use ckrv_core::wire::{CredentialType, Provider, Tier, WorkerInfo};
use tokio::task::JoinSet;

use super::{at, new_user};
use crate::{
    AccessToken, AuditRecord, Credential, DeviceLogin, DeviceState, Login, PreviousRefresh, Put, RefreshFamily, Role, Sealed,
    Secret, SecretValue, ServiceToken, Stores, User,
};

fn sealed(text: &str) -> Sealed {
    Sealed { wrapped_key: "d3JhcA==".to_owned(), nonce: "bm9uY2U=".to_owned(), ciphertext: text.to_owned() }
}

fn credential(name: &str, value: &str) -> Credential {
    Credential {
        name: name.to_owned(),
        provider: Provider::Github,
        credential_type: CredentialType::Pat,
        hosts: vec!["github.com".to_owned()],
        known_hosts: None,
        value: sealed(value),
        created_at: at(0),
        last_used_at: None,
    }
}

fn secret(name: &str) -> Secret {
    Secret { name: name.to_owned(), value: SecretValue::Sealed(sealed("dmFsdWU=")), created_at: at(0), last_used_at: None }
}

fn token(sha256: &str, user: UserId, family: &str, expires: i64) -> AccessToken {
    AccessToken { sha256: sha256.to_owned(), user, family: family.to_owned(), expires_at: at(expires) }
}

fn family(id: &str, user: UserId, current: &str) -> RefreshFamily {
    RefreshFamily {
        id: id.to_owned(),
        user,
        current_sha256: current.to_owned(),
        previous: None,
        created_at: at(0),
        expires_at: at(1000),
        revoked: false,
    }
}

fn device(sha256: &str, code: &str) -> DeviceLogin {
    DeviceLogin {
        device_sha256: sha256.to_owned(),
        user_code_hmac: code.to_owned(),
        client_id: "ckrv-cli".to_owned(),
        state: DeviceState::Pending,
        user: None,
        created_at: at(0),
        expires_at: at(600),
        interval_seconds: 5,
        last_poll: None,
    }
}

pub async fn a_user_is_read_back(stores: &Stores) {
    let mut user = User {
        id: new_user(),
        email: "a@example.org".to_owned(),
        name: "Ada".to_owned(),
        tier: Tier::Free,
        role: Role::User,
        created_at: at(0),
        disabled: false,
    };
    stores.accounts.put_user(&user).await.unwrap();
    user.tier = Tier::Pro;
    stores.accounts.put_user(&user).await.unwrap();
    assert_eq!(stores.accounts.user(user.id).await.unwrap(), Some(user.clone()));
    assert_eq!(stores.accounts.users().await.unwrap(), [user]);
    assert_eq!(stores.accounts.user(new_user()).await.unwrap(), None);
}

pub async fn access_tokens_are_found_by_hash_and_kept_until_they_expire(stores: &Stores) {
    let user = new_user();
    let (short, long) = (token("aa", user, "f", 10), token("bb", user, "f", 100));
    for token in [&short, &long] {
        stores.accounts.put_access_token(token).await.unwrap();
    }
    assert_eq!(stores.accounts.access_token("aa").await.unwrap(), Some(short));
    assert_eq!(stores.accounts.access_token("cc").await.unwrap(), None);
    // What is gone now is the backend's affair: whoever reads a token checks its time.
    stores.accounts.purge_tokens(at(50)).await.unwrap();
    assert_eq!(stores.accounts.access_token("bb").await.unwrap(), Some(long));
}

pub async fn a_family_is_rotated_by_one_of_many(stores: &Stores) {
    let user = new_user();
    stores.accounts.put_family(&family("f", user, "t0")).await.unwrap();
    let mut rivals = JoinSet::new();
    for index in 0..16 {
        let accounts = stores.accounts.clone();
        let mut next = family("f", user, &format!("t1-{index}"));
        next.previous = Some(PreviousRefresh { sha256: "t0".to_owned(), rotated_at: at(5), access_expires_at: at(50) });
        rivals.spawn(async move { accounts.rotate_family(&next, "t0").await.unwrap().then_some(next) });
    }
    let winners: Vec<_> = rivals.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(stores.accounts.family("f").await.unwrap().as_ref(), winners.first());
    assert!(!stores.accounts.rotate_family(&family("other", user, "t1"), "t0").await.unwrap(), "there is no such family");
    assert_eq!(stores.accounts.family("other").await.unwrap(), None);
}

pub async fn a_revoked_family_is_never_rotated_and_its_tokens_are_gone(stores: &Stores) {
    let user = new_user();
    for id in ["f", "g"] {
        stores.accounts.put_family(&family(id, user, "t0")).await.unwrap();
        stores.accounts.put_access_token(&token(&format!("of-{id}"), user, id, 100)).await.unwrap();
    }
    stores.accounts.revoke_family("f").await.unwrap();
    stores.accounts.revoke_family("unknown").await.unwrap();
    assert!(stores.accounts.family("f").await.unwrap().unwrap().revoked);
    assert_eq!(stores.accounts.access_token("of-f").await.unwrap(), None);
    assert!(stores.accounts.access_token("of-g").await.unwrap().is_some(), "another login goes on");
    assert!(!stores.accounts.rotate_family(&family("f", user, "t1"), "t0").await.unwrap());
    assert!(!stores.accounts.rotate_family(&family("f", user, "t1"), "").await.unwrap());
    // A refresh that was under way while the family was revoked.
    stores.accounts.put_access_token(&token("late", user, "f", 100)).await.unwrap();
    assert_eq!(stores.accounts.access_token("late").await.unwrap(), None);
}

pub async fn a_device_login_changes_state_once(stores: &Stores) {
    let login = device("dd", "code");
    stores.accounts.put_device(&login).await.unwrap();
    let polled = DeviceLogin { last_poll: Some(at(5)), ..login.clone() };
    assert!(stores.accounts.update_device(&polled, DeviceState::Pending).await.unwrap());
    let approved = DeviceLogin { state: DeviceState::Approved, user: Some(new_user()), ..login.clone() };
    assert!(stores.accounts.update_device(&approved, DeviceState::Pending).await.unwrap());
    let denied = DeviceLogin { state: DeviceState::Denied, ..login.clone() };
    assert!(!stores.accounts.update_device(&denied, DeviceState::Pending).await.unwrap());
    assert_eq!(stores.accounts.device("dd").await.unwrap(), Some(approved.clone()));

    let mut rivals = JoinSet::new();
    for _ in 0..16 {
        let (accounts, used) = (stores.accounts.clone(), DeviceLogin { state: DeviceState::Used, ..approved.clone() });
        rivals.spawn(async move { accounts.update_device(&used, DeviceState::Approved).await.unwrap() });
    }
    assert_eq!(rivals.join_all().await.into_iter().filter(|won| *won).count(), 1, "a code gives tokens once");
    assert!(!stores.accounts.update_device(&device("unknown", "x"), DeviceState::Pending).await.unwrap());
}

pub async fn a_device_login_is_found_by_its_user_code(stores: &Stores) {
    let login = device("dd", "hmac-of-code");
    stores.accounts.put_device(&login).await.unwrap();
    stores.accounts.put_device(&device("ee", "hmac-of-other")).await.unwrap();
    stores.accounts.purge_tokens(at(599)).await.unwrap();
    assert_eq!(stores.accounts.device_by_user_code("hmac-of-code").await.unwrap(), Some(login));
    assert_eq!(stores.accounts.device_by_user_code("").await.unwrap(), None);
}

pub async fn a_credential_is_put_once_by_one_of_many(stores: &Stores) {
    let owner = new_user();
    let mut rivals = JoinSet::new();
    for index in 0..16 {
        let accounts = stores.accounts.clone();
        let mine = credential("forge", &index.to_string());
        rivals.spawn(async move { (accounts.put_credential(owner, &mine).await.unwrap() == Put::Done).then_some(mine) });
    }
    let winners: Vec<_> = rivals.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert_eq!(stores.accounts.credential(owner, "forge").await.unwrap().as_ref(), winners.first());
    assert_eq!(stores.accounts.credentials(owner).await.unwrap(), winners);
}

pub async fn credentials_of_users_do_not_mix(stores: &Stores) {
    let (one, other) = (new_user(), new_user());
    assert_eq!(stores.accounts.put_credential(one, &credential("forge", "1")).await.unwrap(), Put::Done);
    assert_eq!(stores.accounts.credential(other, "forge").await.unwrap(), None);
    assert!(!stores.accounts.delete_credential(other, "forge").await.unwrap());
    assert_eq!(stores.accounts.put_credential(other, &credential("forge", "2")).await.unwrap(), Put::Done);
    assert!(stores.accounts.delete_credential(one, "forge").await.unwrap());
    assert!(!stores.accounts.delete_credential(one, "forge").await.unwrap());
    assert_eq!(stores.accounts.credentials(one).await.unwrap(), []);
    assert_eq!(stores.accounts.credentials(other).await.unwrap(), [credential("forge", "2")]);
}

pub async fn a_secret_is_put_once_and_deleted_once(stores: &Stores) {
    let owner = new_user();
    assert_eq!(stores.accounts.put_secret(owner, &secret("b")).await.unwrap(), Put::Done);
    assert_eq!(stores.accounts.put_secret(owner, &secret("b")).await.unwrap(), Put::Exists);
    assert_eq!(stores.accounts.put_secret(owner, &secret("a")).await.unwrap(), Put::Done);
    // A credential of the same name is something else.
    assert_eq!(stores.accounts.put_credential(owner, &credential("b", "1")).await.unwrap(), Put::Done);
    assert_eq!(stores.accounts.secret(owner, "b").await.unwrap(), Some(secret("b")));
    assert_eq!(stores.accounts.secrets(owner).await.unwrap(), [secret("a"), secret("b")]);
    assert!(stores.accounts.delete_secret(owner, "b").await.unwrap());
    assert!(!stores.accounts.delete_secret(owner, "b").await.unwrap());
    assert_eq!(stores.accounts.secrets(owner).await.unwrap(), [secret("a")]);
    assert!(stores.accounts.credential(owner, "b").await.unwrap().is_some());
}

pub async fn the_last_use_is_noted_and_never_goes_back(stores: &Stores) {
    let owner = new_user();
    stores.accounts.put_secret(owner, &secret("s")).await.unwrap();
    stores.accounts.put_credential(owner, &credential("c", "1")).await.unwrap();
    for second in [10, 30, 20] {
        stores.accounts.secret_used(owner, "s", at(second)).await.unwrap();
        stores.accounts.credential_used(owner, "c", at(second)).await.unwrap();
    }
    stores.accounts.secret_used(owner, "unknown", at(1)).await.unwrap();
    assert_eq!(stores.accounts.secret(owner, "s").await.unwrap().unwrap().last_used_at, Some(at(30)));
    assert_eq!(stores.accounts.credential(owner, "c").await.unwrap().unwrap().last_used_at, Some(at(30)));
    assert_eq!(stores.accounts.secrets(owner).await.unwrap().len(), 1);
}

pub async fn a_login_is_linked_with_one_user(stores: &Stores) {
    let login = Login { issuer: "https://id.example.org".to_owned(), subject: "1".to_owned() };
    assert_eq!(stores.accounts.user_by_login(&login).await.unwrap(), None);
    let mut tries = JoinSet::new();
    for _ in 0..8 {
        let (accounts, login, user) = (stores.accounts.clone(), login.clone(), new_user());
        tries.spawn(async move { (user, accounts.link_login(&login, user).await.unwrap()) });
    }
    let linked: Vec<_> = tries.join_all().await.into_iter().filter(|(_, put)| *put == Put::Done).map(|(user, _)| user).collect();
    assert_eq!(linked.len(), 1);
    assert_eq!(stores.accounts.user_by_login(&login).await.unwrap(), Some(linked[0]));
    // The same subject at another issuer is somebody else.
    let other = Login { issuer: "https://other.example.org".to_owned(), ..login };
    assert_eq!(stores.accounts.user_by_login(&other).await.unwrap(), None);
}

fn service_token(owner: UserId, id: &str, seconds: i64) -> ServiceToken {
    ServiceToken {
        id: id.to_owned(),
        sha256: format!("hash-of-{id}"),
        owner,
        name: "ci".to_owned(),
        scopes: vec!["jobs:read".to_owned()],
        created_at: at(seconds),
        expires_at: None,
        last_used_at: None,
    }
}

pub async fn a_service_token_is_found_by_its_hash_until_it_is_deleted(stores: &Stores) {
    let (owner, stranger) = (new_user(), new_user());
    let (first, second) = (service_token(owner, "t1", 0), service_token(owner, "t2", 1));
    for token in [&second, &first] {
        assert_eq!(stores.accounts.put_service_token(token).await.unwrap(), Put::Done);
    }
    assert_eq!(stores.accounts.put_service_token(&first).await.unwrap(), Put::Exists);
    assert_eq!(stores.accounts.service_token("hash-of-t1").await.unwrap(), Some(first.clone()));
    assert_eq!(stores.accounts.service_tokens(owner).await.unwrap(), [first.clone(), second.clone()]);
    assert_eq!(stores.accounts.service_tokens(stranger).await.unwrap(), []);
    assert!(!stores.accounts.delete_service_token(stranger, "t1").await.unwrap(), "somebody else's");
    assert!(stores.accounts.delete_service_token(owner, "t1").await.unwrap());
    assert!(!stores.accounts.delete_service_token(owner, "t1").await.unwrap());
    assert_eq!(stores.accounts.service_token("hash-of-t1").await.unwrap(), None);
    assert_eq!(stores.accounts.service_tokens(owner).await.unwrap(), [second]);
    // A use that is noted late does not bring it back.
    stores.accounts.service_token_used(&first, at(100)).await.unwrap();
    assert_eq!(stores.accounts.service_token("hash-of-t1").await.unwrap(), None);
}

pub async fn a_service_tokens_use_is_noted_once_a_minute(stores: &Stores) {
    let token = service_token(new_user(), "t1", 0);
    stores.accounts.put_service_token(&token).await.unwrap();
    stores.accounts.service_token_used(&token, at(100)).await.unwrap();
    let used = stores.accounts.service_token("hash-of-t1").await.unwrap().unwrap();
    assert_eq!(used.last_used_at, Some(at(100)));
    stores.accounts.service_token_used(&used, at(130)).await.unwrap();
    assert_eq!(stores.accounts.service_token("hash-of-t1").await.unwrap().unwrap().last_used_at, Some(at(100)));
    stores.accounts.service_token_used(&used, at(161)).await.unwrap();
    let [listed] = &stores.accounts.service_tokens(token.owner).await.unwrap()[..] else { panic!("one token") };
    assert_eq!(listed.last_used_at, Some(at(161)));
}

pub async fn logins_of_a_user_are_listed_until_revoked(stores: &Stores) {
    let user = new_user();
    for (id, seconds, user) in [("f2", 1, user), ("f1", 0, user), ("f3", 2, new_user())] {
        let family = RefreshFamily {
            id: id.to_owned(),
            user,
            current_sha256: id.to_owned(),
            previous: None,
            created_at: at(seconds),
            expires_at: at(1000),
            revoked: false,
        };
        stores.accounts.put_family(&family).await.unwrap();
    }
    let ids = async || stores.accounts.families_of(user).await.unwrap().into_iter().map(|family| family.id).collect::<Vec<_>>();
    assert_eq!(ids().await, ["f1", "f2"]);
    stores.accounts.revoke_family("f1").await.unwrap();
    assert_eq!(ids().await, ["f2"]);
}

pub async fn audit_records_are_read_by_day_in_order(stores: &Stores) {
    let record = |id: &str, seconds: i64| AuditRecord {
        id: id.to_owned(),
        at: at(seconds),
        actor: "a".to_owned(),
        via: None,
        action: "job.create".to_owned(),
        target: "j".to_owned(),
        from: Some("192.0.2.1".to_owned()),
        request_id: None,
        owner: Some(new_user()),
    };
    let (early, late, next_day) = (record("b", 10), record("a", 20), record("c", 86_400));
    for each in [&late, &next_day, &early] {
        stores.accounts.audit(each).await.unwrap();
    }
    assert_eq!(stores.accounts.audit_of("2027-01-15").await.unwrap(), [early, late]);
    assert_eq!(stores.accounts.audit_of("2027-01-16").await.unwrap(), [next_day]);
    assert_eq!(stores.accounts.audit_of("2027-01-17").await.unwrap(), []);
}

pub async fn workers_are_listed_once_each_while_they_were_seen_lately(stores: &Stores) {
    let worker = |name: &str, instance: &str, seen: i64| WorkerInfo {
        name: name.to_owned(),
        instance: instance.to_owned(),
        region: Some("eu-central-1".to_owned()),
        launcher: "kubernetes".to_owned(),
        capacity: 10,
        load: 3,
        version: "1.2.3".to_owned(),
        started_at: at(0),
        last_seen: at(seen),
    };
    let (old, first, second) = (worker("a", "old", 39), worker("b", "2", 40), worker("b", "1", 90));
    for each in [&old, &first, &worker("b", "1", 80), &second] {
        stores.accounts.put_worker(each).await.unwrap();
    }
    assert_eq!(stores.accounts.workers(at(40)).await.unwrap(), [second, first]);
    assert_eq!(stores.accounts.workers(at(91)).await.unwrap(), []);
}
