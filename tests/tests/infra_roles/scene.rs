//! Both stacks, deployed under names of their own, and the things around them that the roles must not touch.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::ministack::{Caller, Ministack, templates};
use serde_json::{Value, json};

pub struct Scene {
    pub ministack: Ministack,
    pub root: Caller,
    /// In every name that this scene makes.
    pub id: String,
    pub account: String,
    data: BTreeMap<String, String>,
    api: BTreeMap<String, String>,
    /// The ARN of the identity provider's client secret.
    pub sign_in: String,
    pub other_table: String,
    pub other_bucket: String,
    pub other_key: String,
    /// Sealed with our key, by what the encryption context says is the app.
    pub sealed: BTreeMap<String, String>,
}

impl Scene {
    pub async fn new() -> Result<Self> {
        let ministack = Ministack::from_bench()?;
        let root = ministack.root()?;
        let id = format!("t{:08x}", rand::random::<u32>());
        let (data_stack, api_stack) = (format!("{id}-data"), format!("{id}-api"));
        ministack.deploy(&data_stack, &templates().join("data.yaml"), &[]).await?;
        let data = ministack.outputs(&data_stack).await?;
        let bucket = data.get("BucketName").context("no bucket")?;
        done(root.s3("PUT", &format!("/{bucket}/code/stub.zip"), "stub")).await?;
        let sign_in = json!({ "Name": format!("sign-in/{id}"), "SecretString": "client" });
        let sign_in = done(root.json("secretsmanager", "secretsmanager.CreateSecret", &sign_in)).await?;
        let sign_in = sign_in["ARN"].as_str().context("no secret")?.to_owned();
        let own = [("DataStack", data_stack.as_str()), ("CodeKey", "code/stub.zip"), ("Release", "first")];
        let parameters = [own.as_slice(), &[("DispatcherTrust", "Ec2"), ("SignInSecretArn", &sign_in)]].concat();
        ministack.deploy(&api_stack, &templates().join("api.yaml"), &parameters).await?;
        let api = ministack.outputs(&api_stack).await?;
        let account = api.get("ApiRoleArn").and_then(|arn| arn.split(':').nth(4)).context("no account")?.to_owned();
        let (other_table, other_bucket) = (format!("{id}-other"), format!("{id}-other"));
        let sealed = BTreeMap::new();
        let mut scene = Self {
            ministack,
            root,
            id,
            account,
            data,
            api,
            sign_in,
            other_table,
            other_bucket,
            other_key: String::new(),
            sealed,
        };
        scene.fill().await?;
        Ok(scene)
    }

    pub fn data(&self, output: &str) -> Result<&str> {
        self.data.get(output).map(String::as_str).with_context(|| format!("data.yaml has no output {output}"))
    }

    pub fn api(&self, output: &str) -> Result<&str> {
        self.api.get(output).map(String::as_str).with_context(|| format!("api.yaml has no output {output}"))
    }

    async fn fill(&mut self) -> Result<()> {
        let key = |name: &str, kind: &str| json!({ "AttributeName": name, "KeyType": kind });
        let table = json!({
            "TableName": self.other_table, "BillingMode": "PAY_PER_REQUEST",
            "KeySchema": [key("PK", "HASH"), key("SK", "RANGE")],
            "AttributeDefinitions": [
                { "AttributeName": "PK", "AttributeType": "S" }, { "AttributeName": "SK", "AttributeType": "S" },
            ],
        });
        done(self.root.json("dynamodb", "DynamoDB_20120810.CreateTable", &table)).await?;
        done(self.root.s3("PUT", &format!("/{}", self.other_bucket), "")).await?;
        for bucket in [self.data("BucketName")?, &self.other_bucket] {
            for object in ["jobs/one", "code/one"] {
                done(self.root.s3("PUT", &format!("/{bucket}/{object}"), "content")).await?;
            }
        }
        let made = done(self.root.json("kms", "TrentService.CreateKey", &json!({}))).await?;
        self.other_key = made["KeyMetadata"]["Arn"].as_str().context("no key")?.to_owned();
        for app in ["ckrv", "other"] {
            let plain = json!({
                "KeyId": self.data("KeyArn")?, "Plaintext": "c2VjcmV0", "EncryptionContext": { "app": app, "owner": self.id },
            });
            let sealed = done(self.root.json("kms", "TrentService.Encrypt", &plain)).await?;
            self.sealed.insert(app.to_owned(), sealed["CiphertextBlob"].as_str().context("nothing sealed")?.to_owned());
        }
        for folder in ["users", "shared", "elsewhere"] {
            let secret = json!({ "Name": format!("ckrv/{folder}/{}/x", self.id), "SecretString": "s" });
            done(self.root.json("secretsmanager", "secretsmanager.CreateSecret", &secret)).await?;
            let parameter = json!({ "Name": format!("/ckrv/{folder}/{}/x", self.id), "Value": "p", "Type": "SecureString" });
            done(self.root.json("ssm", "AmazonSSM.PutParameter", &parameter)).await?;
        }
        Ok(())
    }

    /// Its ARN, and its session.
    pub async fn user_who_may_assume_anything(&self) -> Result<(String, Caller)> {
        let user = format!("{}-stranger", self.id);
        let made = self.ministack.aws(&["iam", "create-user", "--user-name", &user, "--output", "json"]).await?;
        let made: Value = serde_json::from_str(&made)?;
        let document = json!({ "Statement": [{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*" }] }).to_string();
        let put = ["iam", "put-user-policy", "--user-name", &user, "--policy-name", "assume", "--policy-document", &document];
        self.ministack.aws(&put).await?;
        let key = self.ministack.aws(&["iam", "create-access-key", "--user-name", &user, "--output", "json"]).await?;
        let key: Value = serde_json::from_str(&key)?;
        let field = |name: &str| key["AccessKey"][name].as_str().context("no access key");
        let caller = self.ministack.caller(field("AccessKeyId")?, field("SecretAccessKey")?)?;
        Ok((made["User"]["Arn"].as_str().context("no user")?.to_owned(), caller))
    }

    /// A role that trusts this principal.
    pub async fn role_for(&self, principal: &str) -> Result<String> {
        let trust =
            json!({ "Statement": [{ "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": principal } }] });
        let name = format!("{}-for-stranger", self.id);
        let made =
            ["iam", "create-role", "--role-name", &name, "--assume-role-policy-document", &trust.to_string()].map(str::to_owned);
        let args: Vec<_> = made.iter().map(String::as_str).chain(["--output", "json"]).collect();
        let made: Value = serde_json::from_str(&self.ministack.aws(&args).await?)?;
        made["Role"]["Arn"].as_str().map(str::to_owned).context("no role")
    }
}

async fn done(answer: impl Future<Output = Result<ckrv_tests::ministack::Answer>>) -> Result<Value> {
    let answer = answer.await?;
    ensure!(answer.done(), "{answer:?}");
    Ok(serde_json::from_str(&answer.body).unwrap_or_default())
}
