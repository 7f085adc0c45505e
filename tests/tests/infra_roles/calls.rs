//! The table: which call, by which permission, or refused.

use anyhow::Result;
use ckrv_tests::ministack::{Answer, Caller, REGION, RolePolicy};
use serde_json::{Value, json};

use super::scene::Scene;

/// One line of a role's table.
pub struct Row {
    pub what: String,
    pub call: Call,
    /// What allows it, as `Sid action`; nothing does if it must be refused.
    pub grant: Option<&'static str>,
    /// Whether it changes nothing that another line needs, and works where it is allowed.
    pub harmless: bool,
}

pub enum Call {
    Json {
        service: &'static str,
        target: &'static str,
        body: Value,
    },
    S3 {
        method: &'static str,
        path: String,
    },
    Form {
        service: &'static str,
        parameters: Vec<(&'static str, String)>,
    },
    /// What a service of AWS asks in the caller's name can't be sent from outside: IAM's own simulator is asked.
    Simulated {
        action: &'static str,
        resource: String,
        context: Vec<(&'static str, String)>,
    },
}

impl Call {
    pub async fn by(&self, scene: &Scene, caller: &Caller, policy: &RolePolicy) -> Result<Answer> {
        match self {
            Self::Json { service, target, body } => caller.json(service, target, body).await,
            Self::S3 { method, path } => caller.s3(method, path, "").await,
            Self::Form { service, parameters } => {
                let parameters: Vec<_> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
                caller.form(service, &parameters).await
            }
            Self::Simulated { action, resource, context } => {
                let role = format!("arn:aws:iam::{}:role/{}", scene.account, policy.role);
                simulate(&scene.root, &role, action, resource, context).await
            }
        }
    }
}

async fn simulate(root: &Caller, role: &str, action: &str, resource: &str, context: &[(&str, String)]) -> Result<Answer> {
    let mut parameters: Vec<(String, String)> = vec![
        ("Action".to_owned(), "SimulatePrincipalPolicy".to_owned()),
        ("Version".to_owned(), "2010-05-08".to_owned()),
        ("PolicySourceArn".to_owned(), role.to_owned()),
        ("ActionNames.member.1".to_owned(), action.to_owned()),
        ("ResourceArns.member.1".to_owned(), resource.to_owned()),
    ];
    for (number, (key, value)) in context.iter().enumerate() {
        let entry = format!("ContextEntries.member.{}", number + 1);
        parameters.push((format!("{entry}.ContextKeyName"), (*key).to_owned()));
        parameters.push((format!("{entry}.ContextKeyType"), "string".to_owned()));
        parameters.push((format!("{entry}.ContextKeyValues.member.1"), value.clone()));
    }
    let parameters: Vec<_> = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let answer = root.form("iam", &parameters).await?;
    assert!(answer.done() && answer.body.contains("<EvalDecision>"), "{answer:?}");
    let allowed = answer.body.contains("<EvalDecision>allowed</EvalDecision>");
    Ok(if allowed { answer } else { Answer { status: 403, body: "AccessDenied, says the simulator".to_owned() } })
}

fn row(what: &str, call: Call, grant: Option<&'static str>) -> Row {
    Row { what: what.to_owned(), call, grant, harmless: true }
}

fn dynamodb(target: &'static str, body: Value) -> Call {
    Call::Json { service: "dynamodb", target, body }
}

fn item_key() -> Value {
    json!({ "PK": { "S": "U#1" }, "SK": { "S": "PROFILE" } })
}

/// What both roles do with the table.
fn items(table: &str) -> Vec<Row> {
    let on = |mut body: Value| {
        body["TableName"] = json!(table);
        body
    };
    let transact = |item: Value| dynamodb("DynamoDB_20120810.TransactWriteItems", json!({ "TransactItems": [item] }));
    let queue = json!({ ":q": { "S": "READY#00" } });
    let user = json!({ ":u": { "S": "U#1" } });
    vec![
        row("PutItem", dynamodb("DynamoDB_20120810.PutItem", on(json!({ "Item": item_key() }))), Some("Items dynamodb:PutItem")),
        row(
            "Put in a transaction",
            transact(json!({ "Put": on(json!({ "Item": item_key() })) })),
            Some("Items dynamodb:PutItem"),
        ),
        row("GetItem", dynamodb("DynamoDB_20120810.GetItem", on(json!({ "Key": item_key() }))), Some("Items dynamodb:GetItem")),
        row(
            "BatchGetItem",
            dynamodb("DynamoDB_20120810.BatchGetItem", json!({ "RequestItems": { table: { "Keys": [item_key()] } } })),
            Some("Items dynamodb:BatchGetItem"),
        ),
        row(
            "UpdateItem",
            dynamodb("DynamoDB_20120810.UpdateItem", on(json!({ "Key": item_key() }))),
            Some("Items dynamodb:UpdateItem"),
        ),
        row(
            "Query of the table",
            dynamodb(
                "DynamoDB_20120810.Query",
                on(json!({ "KeyConditionExpression": "PK = :u", "ExpressionAttributeValues": user })),
            ),
            Some("Queries dynamodb:Query 1"),
        ),
        row(
            "Query of the index",
            dynamodb(
                "DynamoDB_20120810.Query",
                on(json!({ "IndexName": "by_queue", "KeyConditionExpression": "QPK = :q", "ExpressionAttributeValues": queue })),
            ),
            Some("Queries dynamodb:Query 2"),
        ),
        row(
            "DeleteItem",
            dynamodb("DynamoDB_20120810.DeleteItem", on(json!({ "Key": item_key() }))),
            Some("Items dynamodb:DeleteItem"),
        ),
    ]
}

/// What neither role may do with a table.
fn tables_refused(scene: &Scene, table: &str) -> Vec<Row> {
    let other = &scene.other_table;
    let get = |table: &str| dynamodb("DynamoDB_20120810.GetItem", json!({ "TableName": table, "Key": item_key() }));
    let put = dynamodb("DynamoDB_20120810.PutItem", json!({ "TableName": other, "Item": item_key() }));
    let checks = json!([{ "Put": { "TableName": other, "Item": item_key() } }]);
    let scan = dynamodb("DynamoDB_20120810.Scan", json!({ "TableName": other }));
    let unprotect = json!({ "TableName": table, "DeletionProtectionEnabled": true });
    let batch = json!({ "RequestItems": { table: [{ "PutRequest": { "Item": item_key() } }] } });
    let check = json!({ "TableName": table, "Key": item_key(), "ConditionExpression": "attribute_not_exists(flag1)" });
    let check = json!({ "TransactItems": [{ "ConditionCheck": check }] });
    let mut rows = vec![
        row("BatchWriteItem", dynamodb("DynamoDB_20120810.BatchWriteItem", batch), None),
        row("ConditionCheck in a transaction", dynamodb("DynamoDB_20120810.TransactWriteItems", check), None),
        row("GetItem of another table", get(other), None),
        row("PutItem into another table", put, None),
        row(
            "Put into another table in a transaction",
            dynamodb("DynamoDB_20120810.TransactWriteItems", json!({ "TransactItems": checks })),
            None,
        ),
        row("Scan of another table", scan, None),
        row("DescribeTable", dynamodb("DynamoDB_20120810.DescribeTable", json!({ "TableName": table })), None),
        row("UpdateTable", dynamodb("DynamoDB_20120810.UpdateTable", unprotect), None),
        row("DeleteTable", dynamodb("DynamoDB_20120810.DeleteTable", json!({ "TableName": table })), None),
    ];
    // The table's own protection stops it where IAM doesn't.
    rows.last_mut().into_iter().for_each(|row| row.harmless = false);
    rows
}

fn s3(method: &'static str, bucket: &str, rest: &str) -> Call {
    Call::S3 { method, path: format!("/{bucket}{rest}") }
}

/// What neither role may do with buckets.
fn buckets_refused(scene: &Scene, bucket: &str) -> Vec<Row> {
    vec![
        row("GetObject outside jobs/", s3("GET", bucket, "/code/one"), None),
        row("PutObject outside jobs/", s3("PUT", bucket, "/code/two"), None),
        row("GetObject of another bucket", s3("GET", &scene.other_bucket, "/jobs/one"), None),
        row("PutObject into another bucket", s3("PUT", &scene.other_bucket, "/jobs/two"), None),
        row("ListBucket of everything", s3("GET", bucket, "?list-type=2"), None),
        row("ListBucket outside jobs/", s3("GET", bucket, "?list-type=2&prefix=code%2F"), None),
        row("ListBucket of another bucket", s3("GET", &scene.other_bucket, "?list-type=2&prefix=jobs%2F"), None),
        row("GetBucketPolicy", s3("GET", bucket, "?policy"), None),
        row(
            "GetLifecycleConfiguration",
            Call::Simulated {
                action: "s3:GetLifecycleConfiguration",
                resource: format!("arn:aws:s3:::{bucket}"),
                context: vec![],
            },
            None,
        ),
    ]
}

fn kms(target: &'static str, body: Value) -> Call {
    Call::Json { service: "kms", target, body }
}

fn data_key(key: &str, context: Value) -> Call {
    kms("TrentService.GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256", "EncryptionContext": context }))
}

fn decrypt(scene: &Scene, app: &str) -> Call {
    let context = json!({ "app": app, "owner": scene.id });
    kms("TrentService.Decrypt", json!({ "CiphertextBlob": scene.sealed[app], "EncryptionContext": context, }))
}

/// A service's own use of our key for what it keeps at rest: allowed for this one thing, refused for another one and through
/// another service.
fn at_rest(scene: &Scene, grant: &'static str, service: &str, key: &'static str, ours: &str) -> Result<Vec<Row>> {
    let action = grant.split(' ').nth(1).unwrap_or_default();
    let call = |via: &str, value: &str| -> Result<Call> {
        let context = vec![("kms:ViaService", format!("{via}.{REGION}.amazonaws.com")), (key, value.to_owned())];
        Ok(Call::Simulated { action, resource: scene.data("KeyArn")?.to_owned(), context })
    };
    Ok(vec![
        row(&format!("{action} by {service} for {ours}"), call(service, ours)?, Some(grant)),
        row(&format!("{action} by {service} for something else"), call(service, "something-else")?, None),
        row(&format!("{action} by another service for {ours}"), call("ec2", ours)?, None),
    ])
}

/// Encryption at rest that both roles meet.
fn both_at_rest(scene: &Scene) -> Result<Vec<Row>> {
    const TABLE: &str = "kms:EncryptionContext:aws:dynamodb:tableName";
    const BUCKET: &str = "kms:EncryptionContext:aws:s3:arn";
    let mut rows = at_rest(scene, "TableAtRest kms:Decrypt", "dynamodb", TABLE, scene.data("TableName")?)?;
    rows.extend(at_rest(scene, "ObjectsAtRest kms:Decrypt", "s3", BUCKET, scene.data("BucketArn")?)?);
    rows.extend(at_rest(scene, "ObjectsAtRest kms:GenerateDataKey", "s3", BUCKET, scene.data("BucketArn")?)?);
    Ok(rows)
}

fn secret(target: &'static str, id: &str) -> Call {
    Call::Json { service: "secretsmanager", target, body: json!({ "SecretId": id, "SecretString": "new" }) }
}

fn get_secret(id: &str) -> Call {
    Call::Json { service: "secretsmanager", target: "secretsmanager.GetSecretValue", body: json!({ "SecretId": id }) }
}

fn parameter(name: &str) -> Call {
    Call::Json { service: "ssm", target: "AmazonSSM.GetParameter", body: json!({ "Name": name, "WithDecryption": true }) }
}

/// What neither role may do with anything else of the account.
fn account_refused(scene: &Scene) -> Result<Vec<Row>> {
    let key = scene.data("KeyArn")?;
    let role = scene.api("ApiRoleArn")?.rsplit('/').next().unwrap_or_default().to_owned();
    let roles = vec![("Action", "GetRole".to_owned()), ("Version", "2010-05-08".to_owned()), ("RoleName", role)];
    let encrypt = json!({ "KeyId": key, "Plaintext": "c2VjcmV0", "EncryptionContext": { "app": "ckrv" } });
    Ok(vec![
        row("Encrypt", kms("TrentService.Encrypt", encrypt), None),
        row("DescribeKey", kms("TrentService.DescribeKey", json!({ "KeyId": key })), None),
        row("a data key of another key", data_key(&scene.other_key, json!({ "app": "ckrv" })), None),
        row("Decrypt for another app", decrypt(scene, "other"), None),
        row("PutSecretValue of the server key", secret("secretsmanager.PutSecretValue", scene.data("ServerKeyArn")?), None),
        row("a secret elsewhere", get_secret(&format!("ckrv/elsewhere/{}/x", scene.id)), None),
        row("a parameter elsewhere", parameter(&format!("/ckrv/elsewhere/{}/x", scene.id)), None),
        row("GetRole", Call::Form { service: "iam", parameters: roles }, None),
    ])
}

pub fn api(scene: &Scene) -> Result<Vec<Row>> {
    let (table, bucket, key) = (scene.data("TableName")?, scene.data("BucketName")?, scene.data("KeyArn")?);
    let server_key = scene.data("ServerKeyArn")?;
    let (log, index) = (scene.api("LogGroup")?, json!({ "TableName": table, "IndexName": "by_queue" }));
    // AWS asks for the stream, ministack for the group: the simulator is asked as AWS would.
    let stream = |action, group: &str| {
        let resource = format!("arn:aws:logs:{REGION}:{}:log-group:{group}:log-stream:one", scene.account);
        Call::Simulated { action, resource, context: vec![] }
    };
    let mut rows = items(table);
    rows.extend([
        row("Scan", dynamodb("DynamoDB_20120810.Scan", json!({ "TableName": table })), Some("UserList dynamodb:Scan")),
        row("Scan of the index", dynamodb("DynamoDB_20120810.Scan", index), None),
        row("PutObject", s3("PUT", bucket, "/jobs/two"), Some("Objects s3:PutObject")),
        row("GetObject", s3("GET", bucket, "/jobs/one"), Some("Objects s3:GetObject")),
        row("DeleteObject", s3("DELETE", bucket, "/jobs/three"), None),
        row(
            "DeleteObject of a checkpoint",
            s3("DELETE", bucket, "/jobs/one/checkpoints/1-1"),
            Some("Checkpoints s3:DeleteObject"),
        ),
        row("ListBucket of jobs/", s3("GET", bucket, "?list-type=2&prefix=jobs%2F"), None),
        row("a data key", data_key(key, json!({ "app": "ckrv", "owner": scene.id })), Some("SealSecrets kms:GenerateDataKey")),
        row(
            "a data key without context",
            kms("TrentService.GenerateDataKey", json!({ "KeyId": key, "KeySpec": "AES_256" })),
            None,
        ),
        row("a data key for another app", data_key(key, json!({ "app": "other" })), None),
        row("Decrypt", decrypt(scene, "ckrv"), None),
        row("the server key", get_secret(server_key), Some("OwnSecrets secretsmanager:GetSecretValue 1")),
        row(
            "the identity provider's client secret",
            get_secret(&scene.sign_in),
            Some("OwnSecrets secretsmanager:GetSecretValue 2"),
        ),
        row("a user's secret", get_secret(&format!("ckrv/users/{}/x", scene.id)), None),
        row("a user's parameter", parameter(&format!("/ckrv/users/{}/x", scene.id)), None),
        row("CreateLogStream", stream("logs:CreateLogStream", log), Some("Logs logs:CreateLogStream")),
        row("CreateLogStream in another group", stream("logs:CreateLogStream", "other"), None),
        row("PutLogEvents", stream("logs:PutLogEvents", log), Some("Logs logs:PutLogEvents")),
        row("a stream of another group", stream("logs:PutLogEvents", "other"), None),
        row("DeleteLogGroup", stream("logs:DeleteLogGroup", log), None),
    ]);
    rows.extend(both_at_rest(scene)?);
    rows.extend(at_rest(scene, "ServerKeyAtRest kms:Decrypt", "secretsmanager", "kms:EncryptionContext:SecretARN", server_key)?);
    rows.extend(tables_refused(scene, table));
    rows.extend(buckets_refused(scene, bucket));
    rows.extend(account_refused(scene)?);
    Ok(rows)
}

pub fn dispatcher(scene: &Scene) -> Result<Vec<Row>> {
    let (table, bucket, key) = (scene.data("TableName")?, scene.data("BucketName")?, scene.data("KeyArn")?);
    let without_context = json!({ "CiphertextBlob": scene.sealed["ckrv"] });
    let (users, shared) = (format!("ckrv/users/{}/x", scene.id), format!("ckrv/shared/{}/x", scene.id));
    let server_key = scene.data("ServerKeyArn")?;
    let mut rows = items(table);
    rows.extend([
        row("Scan", dynamodb("DynamoDB_20120810.Scan", json!({ "TableName": table })), None),
        row("PutObject", s3("PUT", bucket, "/jobs/two"), Some("Objects s3:PutObject")),
        row("GetObject", s3("GET", bucket, "/jobs/one"), Some("Objects s3:GetObject")),
        row("DeleteObject", s3("DELETE", bucket, "/jobs/three"), Some("Objects s3:DeleteObject")),
        row("DeleteObject outside jobs/", s3("DELETE", bucket, "/code/three"), None),
        row("ListBucket of jobs/", s3("GET", bucket, "?list-type=2&prefix=jobs%2F1"), Some("ObjectList s3:ListBucket")),
        row("Decrypt", decrypt(scene, "ckrv"), Some("OpenSecrets kms:Decrypt")),
        row("Decrypt without context", kms("TrentService.Decrypt", without_context), None),
        row("a data key", data_key(key, json!({ "app": "ckrv", "owner": scene.id })), None),
        row("a user's secret", get_secret(&users), Some("ReferredSecrets secretsmanager:GetSecretValue 1")),
        row("a shared secret", get_secret(&shared), Some("ReferredSecrets secretsmanager:GetSecretValue 2")),
        row("a user's parameter", parameter(&format!("/{users}")), Some("ReferredParameters ssm:GetParameter 1")),
        row("a shared parameter", parameter(&format!("/{shared}")), Some("ReferredParameters ssm:GetParameter 2")),
        row("the server key", get_secret(server_key), Some("ServerKey secretsmanager:GetSecretValue")),
        row("PutSecretValue of the server key", secret("secretsmanager.PutSecretValue", server_key), None),
        row("PutSecretValue of a user's secret", secret("secretsmanager.PutSecretValue", &users), None),
    ]);
    // Sealed with a context, it can't be opened without.
    rows.iter_mut().filter(|row| row.what == "Decrypt without context").for_each(|row| row.harmless = false);
    rows.extend(both_at_rest(scene)?);
    rows.extend(at_rest(scene, "ServerKeyAtRest kms:Decrypt", "secretsmanager", "kms:EncryptionContext:SecretARN", server_key)?);
    rows.extend(tables_refused(scene, table));
    rows.extend(buckets_refused(scene, bucket));
    rows.extend(account_refused(scene)?);
    Ok(rows)
}
