//! Users, tokens, device logins, credentials, secrets.

use ckrv_core::id::UserId;
use ckrv_core::wire::{CredentialType, Provider, Tier};
use tokio::task::JoinSet;

use super::{at, new_user};
use crate::{
    AccessToken, Credential, DeviceLogin, DeviceState, PreviousRefresh, Put, RefreshFamily, Sealed, Secret, Stores, User,
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
    Secret { name: name.to_owned(), value: sealed("dmFsdWU="), created_at: at(0), last_used_at: None }
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
    let mut user =
        User { id: new_user(), email: "a@example.org".to_owned(), name: "Ada".to_owned(), tier: Tier::Free, created_at: at(0) };
    stores.accounts.put_user(&user).await.unwrap();
    user.tier = Tier::Pro;
    stores.accounts.put_user(&user).await.unwrap();
    assert_eq!(stores.accounts.user(user.id).await.unwrap(), Some(user.clone()));
    assert_eq!(stores.accounts.users().await.unwrap(), [user]);
    assert_eq!(stores.accounts.user(new_user()).await.unwrap(), None);
}

pub async fn access_tokens_are_found_by_hash_and_purged_when_expired(stores: &Stores) {
    let user = new_user();
    let (short, long) = (token("aa", user, "f", 10), token("bb", user, "f", 100));
    for token in [&short, &long] {
        stores.accounts.put_access_token(token).await.unwrap();
    }
    assert_eq!(stores.accounts.access_token("aa").await.unwrap(), Some(short));
    assert_eq!(stores.accounts.access_token("cc").await.unwrap(), None);
    stores.accounts.purge_tokens(at(50)).await.unwrap();
    assert_eq!(stores.accounts.access_token("aa").await.unwrap(), None);
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
    assert_eq!(stores.accounts.device_by_user_code("hmac-of-code").await.unwrap(), Some(login));
    assert_eq!(stores.accounts.device_by_user_code("").await.unwrap(), None);
    stores.accounts.purge_tokens(at(601)).await.unwrap();
    assert_eq!(stores.accounts.device_by_user_code("hmac-of-code").await.unwrap(), None);
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
