//! Blobs.

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{PutBlobError, Stores};

pub async fn a_blob_is_read_back(stores: &Stores) {
    let content = Bytes::from((0..=255).cycle().take(100_000).collect::<Vec<u8>>());
    stores.blobs.put("jobs/1/1/diff", content.clone()).await.unwrap();
    stores.blobs.put("jobs/1/1/empty", Bytes::new()).await.unwrap();
    assert_eq!(stores.blobs.get("jobs/1/1/diff").await.unwrap(), Some(content));
    assert_eq!(stores.blobs.get("jobs/1/1/empty").await.unwrap(), Some(Bytes::new()));
    assert_eq!(stores.blobs.get("jobs/1/1/log").await.unwrap(), None);
    assert_eq!(stores.blobs.get("jobs/1").await.unwrap(), None);
    stores.blobs.ping().await.unwrap();
}

pub async fn a_part_of_a_blob_is_read(stores: &Stores) {
    stores.blobs.put("jobs/1/1/log", Bytes::from_static(b"0123456789")).await.unwrap();
    for (range, part) in [(0..10, "0123456789"), (0..1, "0"), (3..6, "345"), (8..20, "89"), (4..4, "")] {
        assert_eq!(stores.blobs.get_range("jobs/1/1/log", range.clone()).await.unwrap().unwrap(), part, "{range:?}");
    }
    assert_eq!(stores.blobs.get_range("jobs/1/1/other", 0..4).await.unwrap(), None);
    assert!(stores.blobs.get_range("../other", 0..4).await.is_err());
}

pub async fn the_same_content_again_is_success(stores: &Stores) {
    for _ in 0..3 {
        stores.blobs.put("a/b", Bytes::from_static(b"content")).await.unwrap();
    }
}

pub async fn other_content_is_a_conflict_and_changes_nothing(stores: &Stores) {
    stores.blobs.put("a/b", Bytes::from_static(b"content")).await.unwrap();
    let answer = stores.blobs.put("a/b", Bytes::from_static(b"CONTENT")).await;
    assert!(matches!(&answer, Err(PutBlobError::Conflict(key)) if key == "a/b"), "{answer:?}");
    assert_eq!(stores.blobs.get("a/b").await.unwrap().unwrap(), "content");
}

pub async fn one_of_many_writers_decides_a_blob(stores: &Stores) {
    let mut writers = JoinSet::new();
    for index in 0..24_u8 {
        let blobs = stores.blobs.clone();
        let content = Bytes::from(vec![index % 4; 10_000]);
        writers.spawn(async move {
            match blobs.put("race", content.clone()).await {
                Ok(()) => Some(content),
                Err(PutBlobError::Conflict(_)) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let told: Vec<Bytes> = writers.join_all().await.into_iter().flatten().collect();
    let stored = stores.blobs.get("race").await.unwrap().unwrap();
    assert_eq!(told.len(), 6, "all who wrote what was stored were told `done`");
    assert!(told.iter().all(|content| *content == stored));
}

pub async fn one_blob_is_deleted_and_nothing_beside(stores: &Stores) {
    for key in ["jobs/1/checkpoints/1-1", "jobs/1/checkpoints/1-10", "jobs/1/spec"] {
        stores.blobs.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    for key in ["jobs/1/checkpoints/1-1", "jobs/1/checkpoints/1-1", "jobs/1/checkpoints", "nothing/here"] {
        stores.blobs.delete(key).await.unwrap();
    }
    for (key, there) in [("jobs/1/checkpoints/1-1", false), ("jobs/1/checkpoints/1-10", true), ("jobs/1/spec", true)] {
        assert_eq!(stores.blobs.get(key).await.unwrap().is_some(), there, "{key}");
    }
    assert!(stores.blobs.delete("../jobs").await.is_err());
}

pub async fn a_prefix_is_deleted_with_all_below_and_nothing_beside(stores: &Stores) {
    for key in ["jobs/1/1/diff", "jobs/1/2/diff", "jobs/1/spec", "jobs/10/spec", "jobs/2/spec"] {
        stores.blobs.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    stores.blobs.delete_prefix("jobs/1").await.unwrap();
    stores.blobs.delete_prefix("jobs/1").await.unwrap();
    stores.blobs.delete_prefix("nothing/here").await.unwrap();
    for (key, there) in [("jobs/1/1/diff", false), ("jobs/1/spec", false), ("jobs/10/spec", true), ("jobs/2/spec", true)] {
        assert_eq!(stores.blobs.get(key).await.unwrap().is_some(), there, "{key}");
    }
    // The key is free again.
    stores.blobs.put("jobs/1/spec", Bytes::from_static(b"y")).await.unwrap();
}

pub async fn a_key_that_leaves_the_store_is_refused(stores: &Stores) {
    let long = "x".repeat(2000);
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "./a", "a/", "a\\b", "a b", "a\0b", "ä", "a\n", &long] {
        assert!(matches!(stores.blobs.put(key, Bytes::new()).await, Err(PutBlobError::Store(_))), "{key:?}");
        assert!(stores.blobs.get(key).await.is_err(), "{key:?}");
    }
    for prefix in ["", "/", "..", "a/..", "."] {
        assert!(stores.blobs.delete_prefix(prefix).await.is_err(), "{prefix:?}");
    }
}
