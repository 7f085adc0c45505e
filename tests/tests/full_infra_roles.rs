//! The two roles of api.yaml, deployed: each can do what it must, is refused everything else, and has no permission and no
//! condition that could be left out. The calls are real ones, signed with the role's own session, which IAM judges.

mod infra_roles;

use anyhow::Result;
use ckrv_tests::ministack::{Caller, RolePolicy};
use serde_json::{Value, json};

use crate::infra_roles::calls::{Row, api, dispatcher};
use crate::infra_roles::scene::Scene;

/// One role: its session, its policy and its table.
struct Role {
    caller: Caller,
    policy: RolePolicy,
    rows: Vec<Row>,
}

async fn roles(scene: &Scene) -> Result<[Role; 2]> {
    let role = async |output: &str, name: &str, rows: Vec<Row>| -> Result<Role> {
        let arn = scene.api(output)?;
        let policy = RolePolicy::of(&scene.ministack, arn, name).await?;
        Ok(Role { caller: scene.ministack.assume(arn).await?, policy, rows })
    };
    Ok([role("ApiRoleArn", "api", api(scene)?).await?, role("DispatcherRoleArn", "dispatcher", dispatcher(scene)?).await?])
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Every single thing that a policy grants, and the statements without it: an action, or a resource of a statement with one action.
/// Named `Sid action`, and `Sid action 2` where there are several resources.
fn grants(policy: &RolePolicy) -> Vec<(String, Vec<Value>)> {
    let mut found = Vec::new();
    for (index, statement) in policy.statements().iter().enumerate() {
        let (actions, resources) = (texts(&statement["Action"]), texts(&statement["Resource"]));
        assert!(actions.len() == 1 || resources.len() == 1, "several actions on several resources: {statement}");
        let sid = statement["Sid"].as_str().unwrap_or_default();
        for (number, resource) in resources.iter().enumerate() {
            for action in &actions {
                let name = if resources.len() > 1 { format!("{sid} {action} {}", number + 1) } else { format!("{sid} {action}") };
                let mut rest = policy.statements().to_vec();
                rest[index]["Action"] =
                    json!(actions.iter().filter(|each| actions.len() == 1 || *each != action).collect::<Vec<_>>());
                let others: Vec<_> = resources.iter().filter(|each| resources.len() == 1 || *each != resource).collect();
                rest[index]["Resource"] = json!(others);
                if actions.len() == 1 && resources.len() == 1 {
                    rest.remove(index);
                }
                found.push((name, rest));
            }
        }
    }
    found
}

/// Every key of every condition, and the statements without it.
fn conditions(policy: &RolePolicy) -> Vec<(String, Vec<Value>)> {
    let mut found = Vec::new();
    for (index, statement) in policy.statements().iter().enumerate() {
        for (operator, keys) in statement["Condition"].as_object().into_iter().flatten() {
            for key in keys.as_object().into_iter().flatten().map(|(key, _)| key) {
                let mut rest = policy.statements().to_vec();
                if let Some(keys) = rest[index]["Condition"][operator].as_object_mut() {
                    keys.remove(key);
                }
                found.push((format!("{} {key}", statement["Sid"]), rest));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_what_it_must_and_is_refused_everything_else() -> Result<()> {
    let scene = Scene::new().await?;
    for role in roles(&scene).await? {
        for row in &role.rows {
            let answer = row.call.by(&scene, &role.caller, &role.policy).await?;
            // Refused for its encryption context? Then ministack runs without PYTHONPATH=tests/ministack.
            match row.grant {
                Some(_) => assert!(answer.done(), "{}: {} must be allowed: {answer:?}", role.policy.name, row.what),
                None => assert!(answer.refused(), "{}: {} must be refused: {answer:?}", role.policy.name, row.what),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_permission_is_needed() -> Result<()> {
    let scene = Scene::new().await?;
    for role in roles(&scene).await? {
        let grants = grants(&role.policy);
        for (name, rest) in &grants {
            role.policy.with(rest).put(&scene.root).await?;
            let rows: Vec<_> = role.rows.iter().filter(|row| row.grant == Some(name.as_str())).collect();
            assert!(!rows.is_empty(), "{}: no call needs {name}: take it out", role.policy.name);
            for row in rows {
                let answer = row.call.by(&scene, &role.caller, &role.policy).await?;
                assert!(answer.refused(), "{}: {} without {name}: {answer:?}", role.policy.name, row.what);
            }
        }
        let known: Vec<_> = grants.iter().map(|(name, _)| name.as_str()).collect();
        for grant in role.rows.iter().filter_map(|row| row.grant) {
            assert!(known.contains(&grant), "{}: {grant} is not in the template", role.policy.name);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_condition_is_needed() -> Result<()> {
    let scene = Scene::new().await?;
    for role in roles(&scene).await? {
        let conditions = conditions(&role.policy);
        assert!(conditions.len() >= 6, "{conditions:?}");
        for (name, rest) in conditions {
            role.policy.with(&rest).put(&scene.root).await?;
            let mut opened = Vec::new();
            for row in role.rows.iter().filter(|row| row.grant.is_none() && row.harmless) {
                if row.call.by(&scene, &role.caller, &role.policy).await?.done() {
                    opened.push(&row.what);
                }
            }
            assert!(!opened.is_empty(), "{}: without {name} nothing more is allowed", role.policy.name);
        }
    }
    Ok(())
}

/// A call that is refused for another reason than the policy (a wrong name, say) would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_is_the_policys_own() -> Result<()> {
    let scene = Scene::new().await?;
    for role in roles(&scene).await? {
        let everything = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
        role.policy.with(&[everything]).put(&scene.root).await?;
        for row in role.rows.iter().filter(|row| row.grant.is_none()) {
            let answer = row.call.by(&scene, &role.caller, &role.policy).await?;
            assert!(!answer.refused(), "{}: {} is refused by something else: {answer:?}", role.policy.name, row.what);
            assert!(answer.done() || !row.harmless, "{}: {} can't work: {answer:?}", role.policy.name, row.what);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_refuses_plain_http_from_a_role_that_may_write() -> Result<()> {
    let scene = Scene::new().await?;
    let caller = scene.ministack.assume(scene.api("ApiRoleArn")?).await?;
    let path = format!("/{}/jobs/over-http", scene.data("BucketName")?);
    for method in ["PUT", "GET"] {
        let answer = caller.without_tls().s3(method, &path, "").await?;
        assert!(answer.refused() && answer.body.contains("explicit deny in a resource-based policy"), "{answer:?}");
        let answer = caller.s3(method, &path, "").await?;
        assert!(answer.done(), "{answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_named_service_takes_a_role() -> Result<()> {
    let scene = Scene::new().await?;
    let (user, stranger) = scene.user_who_may_assume_anything().await?;
    for role in ["ApiRoleArn", "DispatcherRoleArn"] {
        let parameters =
            [("Action", "AssumeRole"), ("Version", "2011-06-15"), ("RoleArn", scene.api(role)?), ("RoleSessionName", "stranger")];
        let answer = stranger.form("sts", &parameters).await?;
        assert!(answer.refused(), "{user} takes {role}: {answer:?}");
    }
    // The user is what it says: a role that trusts it is taken.
    let role = scene.role_for(&user).await?;
    let parameters = [("Action", "AssumeRole"), ("Version", "2011-06-15"), ("RoleArn", &role), ("RoleSessionName", "stranger")];
    assert!(stranger.form("sts", &parameters).await?.done());
    Ok(())
}
