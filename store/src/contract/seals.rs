//! Sealed values.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret, SecretString};

use crate::{SealContext, Sealed, StoreError, Stores};

const CONTEXT: SealContext<'_> = SealContext { owner: "user-1", kind: "credential", name: "forge" };

async fn seal(stores: &Stores, context: SealContext<'_>, value: &str) -> Sealed {
    stores.sealer.seal(context, &SecretString::from(value)).await.unwrap()
}

async fn assert_shut(stores: &Stores, context: SealContext<'_>, sealed: &Sealed) {
    let answer = stores.opener.open(context, sealed).await;
    assert!(matches!(answer, Err(StoreError::Sealed(_))), "{context:?} {answer:?}");
}

pub async fn a_value_is_opened_where_it_was_sealed(stores: &Stores) {
    for value in ["", "ghp_0123456789", "-----BEGIN OPENSSH PRIVATE KEY-----\nü\n", &"k".repeat(64 * 1024)] {
        let sealed = seal(stores, CONTEXT, value).await;
        assert_eq!(stores.opener.open(CONTEXT, &sealed).await.unwrap().expose_secret(), value);
        let stored = serde_json::to_string(&sealed).unwrap();
        assert!(value.len() < 8 || !stored.contains(value) && !stored.contains(&BASE64.encode(value)));
    }
}

pub async fn another_owner_kind_or_name_opens_nothing(stores: &Stores) {
    let sealed = seal(stores, CONTEXT, "value").await;
    assert_shut(stores, SealContext { owner: "user-2", ..CONTEXT }, &sealed).await;
    assert_shut(stores, SealContext { kind: "secret", ..CONTEXT }, &sealed).await;
    assert_shut(stores, SealContext { name: "forge2", ..CONTEXT }, &sealed).await;
}

pub async fn parts_can_not_be_shifted_between_fields(stores: &Stores) {
    let sealed = seal(stores, SealContext { owner: "ab", kind: "c", name: "d" }, "value").await;
    for (owner, kind, name) in [("a", "bc", "d"), ("ab", "cd", ""), ("", "abc", "d"), ("abcd", "", "")] {
        assert_shut(stores, SealContext { owner, kind, name }, &sealed).await;
    }
}

pub async fn a_changed_value_is_not_opened(stores: &Stores) {
    let sealed = seal(stores, CONTEXT, "a value of some length").await;
    let other = seal(stores, CONTEXT, "another value of one length").await;
    let flipped = |text: &str, at: usize| {
        let mut bytes = BASE64.decode(text).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        BASE64.encode(bytes)
    };
    for at in 0..60 {
        assert_shut(stores, CONTEXT, &Sealed { wrapped_key: flipped(&sealed.wrapped_key, at), ..sealed.clone() }).await;
        assert_shut(stores, CONTEXT, &Sealed { nonce: flipped(&sealed.nonce, at), ..sealed.clone() }).await;
        assert_shut(stores, CONTEXT, &Sealed { ciphertext: flipped(&sealed.ciphertext, at), ..sealed.clone() }).await;
    }
    // Parts of two values of one context.
    assert_shut(stores, CONTEXT, &Sealed { wrapped_key: other.wrapped_key.clone(), ..sealed.clone() }).await;
    assert_shut(stores, CONTEXT, &Sealed { ciphertext: other.ciphertext.clone(), ..sealed.clone() }).await;
    for text in ["", "AA==", "not base64!", &"A".repeat(4096)] {
        assert_shut(stores, CONTEXT, &Sealed { wrapped_key: text.to_owned(), ..sealed.clone() }).await;
        assert_shut(stores, CONTEXT, &Sealed { nonce: text.to_owned(), ..sealed.clone() }).await;
        assert_shut(stores, CONTEXT, &Sealed { ciphertext: text.to_owned(), ..sealed.clone() }).await;
    }
}

pub async fn equal_values_are_sealed_differently(stores: &Stores) {
    let (one, other) = (seal(stores, CONTEXT, "value").await, seal(stores, CONTEXT, "value").await);
    assert!(one.wrapped_key != other.wrapped_key && one.nonce != other.nonce && one.ciphertext != other.ciphertext);
}
