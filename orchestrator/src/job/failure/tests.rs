use serde_json::json;

use super::*;

fn job() -> JobRecord {
    let time = "2026-01-01T00:00:00Z";
    let id = "01890000-0000-7000-8000-000000000001";
    serde_json::from_value(json!({
        "id": id, "owner": id, "spec_key": "k", "state": "executing", "created_at": time, "updated_at": time, "not_before": time,
        "retention_seconds": 60, "quota_month": "2026-01",
        "request": { "git_repo_url": "https://example.com/r.git", "git_base_branch": "main", "spec_id": "s", "agent": "claude", "timeout_seconds": 60 },
    }))
    .expect("a job")
}

fn ended(fault: Option<Fault>) -> Failure {
    of_end(&Ended { code: Some(137), fault, said: "its last word".to_owned() }, "the stream ended", &job())
}

fn outcome(failure: Failure) -> Outcome {
    match failure {
        Failure::Ends(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn note(failure: Failure) -> String {
    match failure {
        Failure::Infrastructure(note) => note,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_job_used_up_ends_it_with_a_class_a_text_and_a_hint() {
    let cases = [
        (Fault::OutOfMemory, OutcomeClass::OutOfMemory, "ran out of memory", "memory_mib"),
        (Fault::DiskFull("Evicted: exceeds the limit".to_owned()), OutcomeClass::DiskFull, "exceeds the limit", "disk_mib"),
        (Fault::Deadline, OutcomeClass::Timeout, "time limit of 60 seconds", "--timeout"),
    ];
    for (fault, class, text, hint) in cases {
        let outcome = outcome(ended(Some(fault)));
        assert_eq!(outcome.class, class);
        assert!(outcome.message.contains(text), "{}", outcome.message);
        assert!(outcome.hint.as_ref().is_some_and(|said| said.contains(hint)), "{:?}", outcome.hint);
        assert!(!outcome.class.is_infrastructure());
    }
}

#[test]
fn what_the_platform_did_is_another_attempt_and_never_a_success() {
    let lost = note(ended(Some(Fault::NodeLost("DeletionByTaintManager".to_owned()))));
    assert_eq!(lost, "the agent's node was lost: DeletionByTaintManager");
    let evicted = note(ended(Some(Fault::Evicted("Evicted: low on memory".to_owned()))));
    assert_eq!(evicted, "the agent's pod was evicted: Evicted: low on memory");
    assert_eq!(note(ended(Some(Fault::Deleted))), "somebody deleted the agent's pod: the stream ended");
    assert_eq!(note(ended(None)), "the stream ended (its last word)");
}

#[test]
fn a_launch_that_failed_is_told_by_whose_doing_it_is() {
    let of = |error: LaunchError| of_launch(&error, &job());
    let image = LaunchError::ImagePull { image: "i:1".to_owned(), message: "ErrImageNeverPull".to_owned() };
    let outcome_of_image = outcome(of(image));
    assert_eq!(outcome_of_image.class, OutcomeClass::Policy);
    assert!(outcome_of_image.message.contains("ErrImageNeverPull") && outcome_of_image.hint.is_some());
    let away = LaunchError::RegistryAway { image: "i:1".to_owned(), message: "connection refused".to_owned() };
    assert!(note(of(away)).contains("connection refused"), "another attempt may find the registry there");
    let up = |fault| LaunchError::NeverUp { fault, message: "why".to_owned() };
    assert_eq!(outcome(of(up(Some(Fault::OutOfMemory)))).class, OutcomeClass::OutOfMemory);
    assert_eq!(outcome(of(up(Some(Fault::DiskFull("why".to_owned()))))).class, OutcomeClass::DiskFull);
    assert!(note(of(up(Some(Fault::Deleted)))).ends_with("why"));
    let texts = [
        (up(None), "ended before its shim was there: why", "kubectl get events"),
        (LaunchError::Quota { message: "pods=1".to_owned() }, "pods=1", "ResourceQuota"),
        (LaunchError::Unschedulable { seconds: 300, message: "0/1 nodes".to_owned() }, "within 300 s: 0/1 nodes", "add nodes"),
    ];
    for (error, text, hint) in texts {
        let note = note(of(error));
        assert!(note.contains(text) && note.contains(hint), "{note}");
    }
}
