//! ministack with `AUTH=true`: stacks deployed with the stock `aws cloudformation`, and signed calls as the account's root or as
//! a role, of which IAM decides whether they go through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{bench, http};

pub const REGION: &str = "us-east-1";
/// What ministack takes for the root of this account.
pub const ROOT: &str = "test";

/// The folder of the templates.
pub fn templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/aws")
}

/// The emulator that the bench has started.
#[derive(Clone, Debug)]
pub struct Ministack {
    pub url: String,
    cli: PathBuf,
}

impl Ministack {
    pub fn from_bench() -> Result<Self> {
        Ok(Self { url: bench::variable("CKRV_TEST_MINISTACK")?, cli: bench::variable("CKRV_TEST_AWSCLI")?.into() })
    }

    /// The stock `aws`, as root; what it prints.
    pub async fn aws(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.cli);
        command.args(args).env_clear().kill_on_drop(true);
        // The program's own folder first: it names its Python by `env`.
        let own = self.cli.parent().context("CKRV_TEST_AWSCLI is no path")?;
        command.env("PATH", format!("{}:/usr/bin:/bin", own.display())).env("HOME", "/nonexistent");
        command.env("AWS_ACCESS_KEY_ID", ROOT).env("AWS_SECRET_ACCESS_KEY", ROOT).env("AWS_DEFAULT_REGION", REGION);
        command.env("AWS_ENDPOINT_URL", &self.url).env("AWS_PAGER", "");
        let output = command.output().await.with_context(|| format!("can't start {}", self.cli.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "aws {}: {said}", args.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// `aws cloudformation deploy`, as an admin does it; what it prints.
    pub async fn deploy(&self, stack: &str, template: &Path, parameters: &[(&str, &str)]) -> Result<String> {
        let file = template.to_str().context("a path that is no text")?;
        let parameters: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut args = vec!["cloudformation", "deploy", "--stack-name", stack, "--template-file", file];
        args.extend(["--capabilities", "CAPABILITY_IAM", "--no-fail-on-empty-changeset"]);
        if !parameters.is_empty() {
            args.push("--parameter-overrides");
            args.extend(parameters.iter().map(String::as_str));
        }
        self.aws(&args).await
    }

    /// A stack's outputs by name.
    pub async fn outputs(&self, stack: &str) -> Result<BTreeMap<String, String>> {
        let described = self.aws(&["cloudformation", "describe-stacks", "--stack-name", stack, "--output", "json"]).await?;
        let described: Value = serde_json::from_str(&described)?;
        let outputs = described["Stacks"][0]["Outputs"].as_array().context("a stack without outputs")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(outputs.iter().map(|output| (text(&output["OutputKey"]), text(&output["OutputValue"]))).collect())
    }

    pub fn root(&self) -> Result<Caller> {
        self.caller(ROOT, ROOT)
    }

    /// A user with these keys.
    pub fn caller(&self, key: &str, secret: &str) -> Result<Caller> {
        Caller::new(&self.url, Credentials::new(key, secret, None, None, "tests"))
    }

    /// A session of this role, which root may take whatever the role's trust says of services.
    pub async fn assume(&self, role: &str) -> Result<Caller> {
        let args = ["sts", "assume-role", "--role-arn", role, "--role-session-name", "tests", "--output", "json"];
        let assumed: Value = serde_json::from_str(&self.aws(&args).await?)?;
        let field = |name: &str| assumed["Credentials"][name].as_str().map(str::to_owned).context("no credentials");
        let token = Some(field("SessionToken")?);
        Caller::new(&self.url, Credentials::new(field("AccessKeyId")?, field("SecretAccessKey")?, token, None, "tests"))
    }
}

/// Somebody who signs requests.
#[derive(Clone, Debug)]
pub struct Caller {
    url: String,
    credentials: Credentials,
    client: reqwest::Client,
    /// Whether requests say that they came in over TLS, as a proxy that ends TLS says it.
    tls: bool,
}

/// What a service answered.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// What was answered well may be a secret or a key: only a refusal is shown.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = if self.done() { "(not shown)" } else { &self.body };
        f.debug_struct("Answer").field("status", &self.status).field("body", &body).finish()
    }
}

impl Answer {
    pub fn done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// IAM, or a resource's own policy, said no.
    pub fn refused(&self) -> bool {
        !self.done() && self.body.contains("AccessDenied")
    }

    pub fn json(&self) -> Result<Value> {
        ensure!(self.done(), "{self:?}");
        serde_json::from_str(&self.body).context("an answer that is no JSON")
    }
}

impl Caller {
    fn new(url: &str, credentials: Credentials) -> Result<Self> {
        Ok(Self { url: url.to_owned(), credentials, client: http::client()?, tls: true })
    }

    /// The same caller over plain HTTP.
    pub fn without_tls(&self) -> Self {
        Self { tls: false, ..self.clone() }
    }

    /// A call of a service that speaks JSON: `DynamoDB_20120810.GetItem`, `TrentService.Decrypt` and the like.
    pub async fn json(&self, service: &str, target: &str, body: &Value) -> Result<Answer> {
        let kind = if service == "dynamodb" { "application/x-amz-json-1.0" } else { "application/x-amz-json-1.1" };
        let headers = [("content-type", kind), ("x-amz-target", target)];
        self.send(service, "POST", "/", &headers, body.to_string().into_bytes()).await
    }

    /// A call of a service that takes forms: IAM, STS.
    pub async fn form(&self, service: &str, parameters: &[(&str, &str)]) -> Result<Answer> {
        let body = reqwest::Url::parse_with_params("http://form/", parameters)?.query().unwrap_or_default().to_owned();
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        self.send(service, "POST", "/", &headers, body.into_bytes()).await
    }

    /// A call of S3, by `/bucket/key?query`.
    pub async fn s3(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        self.send("s3", method, path, &[], body.as_bytes().to_vec()).await
    }

    /// Any call, signed.
    pub async fn send(&self, service: &str, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Result<Answer> {
        let url = format!("{}{path}", self.url);
        let mut request = self.client.request(method.parse()?, &url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        for (name, value) in self.signature(service, method, &url, headers, &body)? {
            request = request.header(name, value);
        }
        if self.tls {
            request = request.header("x-forwarded-proto", "https");
        }
        let response = request.body(body).send().await?;
        Ok(Answer { status: response.status().as_u16(), body: response.text().await? })
    }

    /// The headers that a signature consists of.
    #[expect(clippy::disallowed_types, reason = "the signing crate takes the time as SystemTime")]
    fn signature(
        &self,
        service: &str,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Vec<(String, String)>> {
        let mut settings = SigningSettings::default();
        if service == "s3" {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        }
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder().identity(&identity).region(REGION).name(service).settings(settings);
        let params = params.time(std::time::SystemTime::now()).build()?.into();
        let request = SignableRequest::new(method, url, headers.iter().copied(), SignableBody::Bytes(body))?;
        let (instructions, _) = sign(request, &params)?.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// A role's one inline policy, as it was deployed.
#[derive(Clone, Debug)]
pub struct RolePolicy {
    pub role: String,
    pub name: String,
    pub document: Value,
}

impl RolePolicy {
    /// By the role's ARN.
    pub async fn of(ministack: &Ministack, role_arn: &str, name: &str) -> Result<Self> {
        let role = role_arn.rsplit('/').next().unwrap_or_default().to_owned();
        let args = ["iam", "get-role-policy", "--role-name", &role, "--policy-name", name, "--output", "json"];
        let found: Value = serde_json::from_str(&ministack.aws(&args).await?)?;
        Ok(Self { role, name: name.to_owned(), document: found["PolicyDocument"].clone() })
    }

    pub fn statements(&self) -> &[Value] {
        self.document["Statement"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The same policy with other statements.
    pub fn with(&self, statements: &[Value]) -> Self {
        Self { document: json!({ "Version": "2012-10-17", "Statement": statements }), ..self.clone() }
    }

    /// Puts it in force.
    pub async fn put(&self, root: &Caller) -> Result<()> {
        let document = self.document.to_string();
        let put = [("Action", "PutRolePolicy"), ("Version", "2010-05-08"), ("RoleName", self.role.as_str())];
        let rest = [("PolicyName", self.name.as_str()), ("PolicyDocument", document.as_str())];
        let answer = root.form("iam", &[put.as_slice(), rest.as_slice()].concat()).await?;
        ensure!(answer.done(), "{answer:?}");
        Ok(())
    }
}
