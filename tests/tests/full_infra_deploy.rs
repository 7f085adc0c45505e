//! The templates, deployed as an admin deploys them: with the stock `aws cloudformation`. What the function answers is another
//! test's business; here its zip is a stub.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use ckrv_tests::ministack::{Ministack, templates};
use serde_json::Value;

/// Both stacks under names of their own.
struct Stacks {
    ministack: Ministack,
    data: String,
    api: String,
}

impl Stacks {
    /// The data stack, with a stub of the function's code in its bucket.
    async fn new() -> Result<Self> {
        let ministack = Ministack::from_bench()?;
        let id = format!("t{:08x}", rand::random::<u32>());
        let stacks = Self { ministack, data: format!("{id}-data"), api: format!("{id}-api") };
        stacks.ministack.deploy(&stacks.data, &templates().join("data.yaml"), &[]).await?;
        stacks.upload("code/stub.zip").await?;
        Ok(stacks)
    }

    async fn upload(&self, key: &str) -> Result<()> {
        let bucket = self.output(&self.data, "BucketName").await?;
        let put = self.ministack.root()?.s3("PUT", &format!("/{bucket}/{key}"), &empty_zip(key)).await?;
        ensure!(put.done(), "{put:?}");
        Ok(())
    }

    /// Deploys or updates the API's stack; what the CLI prints.
    async fn deploy(&self, more: &[(&str, &str)]) -> Result<String> {
        let mut parameters =
            BTreeMap::from([("DataStack", self.data.as_str()), ("CodeKey", "code/stub.zip"), ("Release", "first")]);
        parameters.extend(more.iter().copied());
        let parameters: Vec<_> = parameters.into_iter().collect();
        self.ministack.deploy(&self.api, &templates().join("api.yaml"), &parameters).await
    }

    async fn output(&self, stack: &str, name: &str) -> Result<String> {
        let mut outputs = self.ministack.outputs(stack).await?;
        outputs.remove(name).with_context(|| format!("{stack} has no output {name}: {outputs:?}"))
    }

    async fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.ministack.aws(&[args, &["--output", "json"]].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("aws {}: {text}", args.join(" ")))
    }

    async fn alias(&self) -> Result<Value> {
        let function = self.output(&self.api, "FunctionName").await?;
        self.json(&["lambda", "get-alias", "--function-name", &function, "--name", "live"]).await
    }

    async fn types(&self, stack: &str) -> Result<Vec<String>> {
        let listed = self.json(&["cloudformation", "list-stack-resources", "--stack-name", stack]).await?;
        let listed = listed["StackResourceSummaries"].as_array().context("no resources")?;
        let mut types: Vec<_> =
            listed.iter().filter_map(|resource| resource["ResourceType"].as_str()).map(str::to_owned).collect();
        types.sort();
        Ok(types)
    }

    async fn delete(&self, stack: &str) -> Result<()> {
        self.ministack.aws(&["cloudformation", "delete-stack", "--stack-name", stack]).await?;
        self.ministack.aws(&["cloudformation", "wait", "stack-delete-complete", "--stack-name", stack]).await.map(drop)
    }
}

/// Parameters, and what must then stand in the trust policy.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// A zip of no files: an end record with this comment, which makes each one's hash its own.
fn empty_zip(comment: &str) -> String {
    let length = char::from(u8::try_from(comment.len()).unwrap_or_default());
    format!("PK\u{5}\u{6}{}{length}\0{comment}", "\0".repeat(16))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_deployment_again_changes_nothing() -> Result<()> {
    let stacks = Stacks::new().await?;
    let said = stacks.deploy(&[]).await?;
    assert!(said.contains("Successfully created/updated stack"), "{said}");
    // awscli names a change set by the second.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    for said in [stacks.deploy(&[]).await?, stacks.ministack.deploy(&stacks.data, &templates().join("data.yaml"), &[]).await?] {
        assert!(said.contains("No changes to deploy"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_gets_what_the_data_stack_made() -> Result<()> {
    let stacks = Stacks::new().await?;
    let (url, config) = ("https://ckrv.example.com", "[signin]\ndevice = true\n");
    stacks.deploy(&[("PublicUrl", url), ("Config", config), ("MemorySize", "512"), ("ReservedConcurrency", "7")]).await?;
    let function = stacks.output(&stacks.api, "FunctionName").await?;
    let found =
        stacks.json(&["lambda", "get-function-configuration", "--function-name", &function, "--qualifier", "live"]).await?;
    let variables = &found["Environment"]["Variables"];
    for (name, output) in [
        ("CKRV_TABLE", "TableName"),
        ("CKRV_BUCKET", "BucketName"),
        ("CKRV_KMS_KEY", "KeyArn"),
        ("CKRV_SERVER_KEY_SECRET", "ServerKeyArn"),
    ] {
        assert_eq!(variables[name], stacks.output(&stacks.data, output).await?, "{name}");
    }
    assert_eq!((&variables["CKRV_PUBLIC_URL"], &variables["CKRV_CONFIG"]), (&url.into(), &config.into()));
    assert_eq!(variables["CKRV_INVOKE_MODE"], "RESPONSE_STREAM");
    assert_eq!((&found["Runtime"], &found["Architectures"][0]), (&"provided.al2023".into(), &"arm64".into()));
    assert_eq!((&found["MemorySize"], &found["Timeout"]), (&512.into(), &60.into()));
    assert_eq!(found["LoggingConfig"]["LogGroup"], stacks.output(&stacks.api, "LogGroup").await?);
    let secret = stacks.output(&stacks.data, "ServerKeyArn").await?;
    let secret = stacks.json(&["secretsmanager", "get-secret-value", "--secret-id", &secret]).await?;
    assert_eq!(secret["SecretString"].as_str().map(str::len), Some(64));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_release_publishes_a_version_and_the_one_before_stays_as_the_way_back() -> Result<()> {
    let stacks = Stacks::new().await?;
    stacks.deploy(&[]).await?;
    assert_eq!(stacks.alias().await?["FunctionVersion"], "1");
    stacks.upload("code/second.zip").await?;
    stacks.deploy(&[("CodeKey", "code/second.zip"), ("Release", "second")]).await?;
    assert_eq!(stacks.alias().await?["FunctionVersion"], "2");
    // Only a setting is new, the code isn't.
    stacks.deploy(&[("CodeKey", "code/second.zip"), ("Release", "second-b"), ("MemorySize", "512")]).await?;
    assert_eq!(stacks.alias().await?["FunctionVersion"], "3");
    // Nothing is new but the release.
    stacks.deploy(&[("CodeKey", "code/second.zip"), ("Release", "second-c"), ("MemorySize", "512")]).await?;
    assert_eq!(stacks.alias().await?["FunctionVersion"], "4");
    let function = stacks.output(&stacks.api, "FunctionName").await?;
    let versions = stacks.json(&["lambda", "list-versions-by-function", "--function-name", &function]).await?;
    let described: Vec<_> =
        versions["Versions"].as_array().context("no versions")?.iter().map(|each| &each["Description"]).collect();
    assert_eq!(described[1..], ["first", "second", "second-b", "second-c"]);
    // The way back is one call.
    let back = ["lambda", "update-alias", "--function-name", &function, "--name", "live", "--function-version", "1"];
    stacks.json(&back).await?;
    let live =
        stacks.json(&["lambda", "get-function-configuration", "--function-name", &function, "--qualifier", "live"]).await?;
    assert_eq!(live["Version"], "1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_is_of_the_alias_and_has_both_permissions() -> Result<()> {
    let stacks = Stacks::new().await?;
    stacks.deploy(&[]).await?;
    let function = stacks.output(&stacks.api, "FunctionName").await?;
    let url = stacks.json(&["lambda", "get-function-url-config", "--function-name", &function, "--qualifier", "live"]).await?;
    assert_eq!((&url["AuthType"], &url["InvokeMode"]), (&"NONE".into(), &"RESPONSE_STREAM".into()));
    assert_eq!(url["FunctionUrl"], stacks.output(&stacks.api, "Url").await?);
    let policy = stacks.json(&["lambda", "get-policy", "--function-name", &function, "--qualifier", "live"]).await?;
    let policy: Value = serde_json::from_str(policy["Policy"].as_str().context("no policy")?)?;
    let statements = policy["Statement"].as_array().context("no statements")?;
    assert!(statements.iter().all(|each| each["Resource"].as_str().is_some_and(|arn| arn.ends_with(":live"))), "{policy}");
    let mut allowed: Vec<_> = statements.iter().map(|each| format!("{} {}", each["Action"], each["Condition"])).collect();
    allowed.sort();
    let expected = [
        r#""lambda:InvokeFunction" {"Bool":{"lambda:InvokedViaFunctionUrl":"true"}}"#,
        r#""lambda:InvokeFunctionUrl" {"StringEquals":{"lambda:FunctionUrlAuthType":"NONE"}}"#,
    ];
    assert_eq!(allowed, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_api_has_a_named_stage_and_there_is_no_function_url() -> Result<()> {
    let stacks = Stacks::new().await?;
    stacks.deploy(&[("Entrance", "HttpApi"), ("StageName", "prod")]).await?;
    let types = stacks.types(&stacks.api).await?;
    assert!(!types.iter().any(|kind| kind == "AWS::Lambda::Url"), "{types:?}");
    assert!(types.iter().any(|kind| kind == "AWS::ApiGatewayV2::Stage"), "{types:?}");
    let url = stacks.output(&stacks.api, "Url").await?;
    assert!(url.ends_with("/prod"), "{url}");
    let function = stacks.output(&stacks.api, "FunctionName").await?;
    let live = ["lambda", "get-function-configuration", "--function-name", &function, "--qualifier", "live"];
    assert_eq!(stacks.json(&live).await?["Environment"]["Variables"]["CKRV_INVOKE_MODE"], "BUFFERED");
    let policy = stacks.ministack.aws(&["lambda", "get-policy", "--function-name", &function, "--qualifier", "live"]).await?;
    assert!(policy.contains("apigateway.amazonaws.com") && !policy.contains("FunctionUrl"), "{policy}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dispatchers_role_trusts_what_was_asked_for() -> Result<()> {
    let stacks = Stacks::new().await?;
    let provider = "arn:aws:iam::000000000000:oidc-provider/oidc.eks.us-east-1.amazonaws.com/id/ABC";
    let cases: [Case<'_>; 3] = [
        (&[], &["pods.eks.amazonaws.com", "sts:TagSession", "kubernetes-service-account\":\"ckrv-dispatcher\"", ":cluster/*"]),
        (
            &[("DispatcherTrust", "Irsa"), ("OidcProviderArn", provider), ("KubernetesNamespace", "jobs")],
            &[
                "sts:AssumeRoleWithWebIdentity",
                "\"oidc.eks.us-east-1.amazonaws.com/id/ABC:sub\":\"system:serviceaccount:jobs:ckrv-dispatcher\"",
                "\"oidc.eks.us-east-1.amazonaws.com/id/ABC:aud\":\"sts.amazonaws.com\"",
            ],
        ),
        (&[("DispatcherTrust", "Ec2")], &["ec2.amazonaws.com"]),
    ];
    for (parameters, expected) in cases {
        stacks.deploy(parameters).await?;
        let role = stacks.output(&stacks.api, "DispatcherRoleArn").await?;
        let role = stacks.json(&["iam", "get-role", "--role-name", role.rsplit('/').next().unwrap_or_default()]).await?;
        let trust = role["Role"]["AssumeRolePolicyDocument"].to_string();
        for part in expected {
            assert!(trust.contains(part), "{part} is not in {trust}");
        }
        let others = ["pods.eks.amazonaws.com", "sts:AssumeRoleWithWebIdentity", "ec2.amazonaws.com"];
        assert_eq!(others.iter().filter(|service| trust.contains(**service)).count(), 1, "{trust}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_stacks_leave_the_data_and_take_the_rest() -> Result<()> {
    let stacks = Stacks::new().await?;
    stacks.deploy(&[]).await?;
    let outputs = stacks.ministack.outputs(&stacks.data).await?;
    let role = stacks.output(&stacks.api, "ApiRoleArn").await?;
    let used = stacks.delete(&stacks.data).await;
    assert!(used.is_err_and(|error| error.to_string().contains("is imported by")), "the data is in use");
    stacks.delete(&stacks.api).await?;
    let role = stacks.json(&["iam", "get-role", "--role-name", role.rsplit('/').next().unwrap_or_default()]).await;
    assert!(role.is_err_and(|error| error.to_string().contains("NoSuchEntity")));
    stacks.delete(&stacks.data).await?;
    let table = stacks.json(&["dynamodb", "describe-table", "--table-name", &outputs["TableName"]]).await?;
    assert_eq!(table["Table"]["DeletionProtectionEnabled"], true);
    let delete = stacks.json(&["dynamodb", "delete-table", "--table-name", &outputs["TableName"]]).await;
    assert!(delete.is_err_and(|error| error.to_string().contains("protected against deletion")));
    stacks.json(&["s3api", "list-objects-v2", "--bucket", &outputs["BucketName"]]).await?;
    let policy = stacks.ministack.aws(&["s3api", "get-bucket-policy", "--bucket", &outputs["BucketName"]]).await?;
    assert!(policy.contains("aws:SecureTransport"), "{policy}");
    let key = stacks.json(&["kms", "describe-key", "--key-id", &outputs["KeyArn"]]).await?;
    assert_eq!(key["KeyMetadata"]["KeyState"], "Enabled");
    stacks.json(&["secretsmanager", "get-secret-value", "--secret-id", &outputs["ServerKeyArn"]]).await?;
    Ok(())
}
