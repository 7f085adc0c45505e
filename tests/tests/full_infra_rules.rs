//! The templates pass their gates, and each gate refuses the mistakes that it is there for: cfn-lint knows what CloudFormation
//! takes, the guard rules know what we promise. An emulator knows neither.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use ckrv_tests::bench;
use serde_json::Value;

const TEMPLATES: [&str; 2] = ["data.yaml", "api.yaml"];

/// What of the SDK an action allows, as the code says it.
const CALLS: [(&str, &[&str]); 22] = [
    ("dynamodb:BatchGetItem", &[".batch_get_item()"]),
    ("dynamodb:BatchWriteItem", &[".batch_write_item()"]),
    ("dynamodb:ConditionCheckItem", &["ConditionCheck::builder()"]),
    ("dynamodb:DeleteItem", &[".delete_item()", " Delete::builder()"]),
    ("dynamodb:DescribeTable", &[".describe_table()"]),
    ("dynamodb:GetItem", &[".get_item()", ".transact_get_items()"]),
    ("dynamodb:PutItem", &[".put_item()", " Put::builder()"]),
    ("dynamodb:Query", &[".query()"]),
    ("dynamodb:Scan", &[".scan()"]),
    ("dynamodb:UpdateItem", &[".update_item()", " Update::builder()"]),
    ("kms:Decrypt", &[".decrypt()"]),
    ("kms:DescribeKey", &[".describe_key()"]),
    ("kms:Encrypt", &[".encrypt()"]),
    ("kms:GenerateDataKey", &[".generate_data_key()"]),
    ("s3:AbortMultipartUpload", &[".abort_multipart_upload()"]),
    ("s3:DeleteObject", &[".delete_object()", ".delete_objects()"]),
    ("s3:GetObject", &[".get_object()", ".head_object()"]),
    ("s3:ListBucket", &[".list_objects_v2()", ".head_bucket()"]),
    ("s3:PutObject", &[".put_object()", ".create_multipart_upload()"]),
    ("secretsmanager:GetSecretValue", &[".get_secret_value()"]),
    ("ssm:GetParameter", &[".get_parameter()"]),
    ("ssm:GetParameters", &[".get_parameters()"]),
];

/// One edit of a template that must not get through.
struct Mutant {
    what: String,
    file: String,
    gate: String,
    text: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/aws")
}

fn mutants() -> Result<Vec<Mutant>> {
    let list: toml::Table = std::fs::read_to_string(folder().join("guard/mutants.toml"))?.parse()?;
    let list = list["mutant"].as_array().context("no mutants")?;
    let made = list.iter().map(|mutant| {
        let field = |name: &str| mutant[name].as_str().map(str::to_owned).context(format!("{name} of a mutant is no text"));
        let (what, file, gate, from) = (field("what")?, field("file")?, field("gate")?, field("from")?);
        let template = std::fs::read_to_string(folder().join(&file))?;
        assert_eq!(template.matches(&from).count(), 1, "{what}: what it edits must stand in {file} once");
        Ok(Mutant { what, file, gate, text: template.replace(&from, &field("to")?) })
    });
    made.collect()
}

/// Templates without a mistake are no output and a good exit.
fn lint(templates: &[PathBuf]) -> Result<Output> {
    let mut command = Command::new(bench::variable("CKRV_TEST_CFN_LINT")?);
    command.arg("--config-file").arg(folder().join(".cfnlintrc")).args(["--format", "json", "--template"]).args(templates);
    Ok(command.output()?)
}

/// The files in which cfn-lint found something, and what.
fn found(output: &Output) -> Result<Vec<(PathBuf, String)>> {
    let list: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("cfn-lint: {}", String::from_utf8_lossy(&output.stderr)))?;
    let each = list.as_array().context("cfn-lint gives no list")?.iter().map(|problem| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (PathBuf::from(text(&problem["Filename"])), format!("{} {}", text(&problem["Rule"]["Id"]), text(&problem["Message"])))
    });
    Ok(each.collect())
}

fn rules(template: &str) -> PathBuf {
    folder().join("guard").join(template.replace(".yaml", ".guard"))
}

/// The guard rules that this file breaks.
fn broken(data: &Path, template: &str) -> Result<BTreeSet<String>> {
    let mut command = Command::new(bench::variable("CKRV_TEST_CFN_GUARD")?);
    command.args(["validate", "--show-summary", "fail", "--data"]).arg(data).arg("--rules").arg(rules(template));
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `api.guard/logs_end    FAIL`
    let failed = text.lines().filter_map(|line| {
        let (rule, rest) = line.split_once(".guard/")?.1.split_once(' ')?;
        (rest.trim() == "FAIL").then(|| rule.to_owned())
    });
    let failed: BTreeSet<_> = failed.collect();
    assert_eq!(output.status.success(), failed.is_empty(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(failed)
}

/// The names of all rules for a template.
fn names(template: &str) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(rules(template))?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("rule ")?.split(' ').next()).map(str::to_owned).collect())
}

#[test]
fn the_templates_pass_both_gates() -> Result<()> {
    let templates = TEMPLATES.map(|name| folder().join(name));
    assert_eq!(found(&lint(&templates)?)?, []);
    for (name, path) in TEMPLATES.iter().zip(&templates) {
        assert_eq!(broken(path, name)?, BTreeSet::new(), "{name}");
    }
    Ok(())
}

#[test]
fn cfn_lint_refuses_each_mistake_that_is_its_to_find() -> Result<()> {
    let mutants: Vec<_> = mutants()?.into_iter().filter(|mutant| mutant.gate == "lint").collect();
    assert!(mutants.len() >= 10, "only {} mutants", mutants.len());
    let scratch = tempfile::tempdir()?;
    let paths: Vec<_> = (0..mutants.len()).map(|number| scratch.path().join(format!("{number}.yaml"))).collect();
    for (path, mutant) in paths.iter().zip(&mutants) {
        std::fs::write(path, &mutant.text)?;
    }
    let found = found(&lint(&paths)?)?;
    let passed: Vec<_> = paths.iter().zip(&mutants).filter(|(path, _)| !found.iter().any(|(file, _)| file == *path)).collect();
    assert!(passed.is_empty(), "cfn-lint let through: {:?}", passed.iter().map(|(_, mutant)| &mutant.what).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn the_guard_rules_refuse_each_mistake_that_no_linter_knows_and_each_rule_is_needed() -> Result<()> {
    let mutants: Vec<_> = mutants()?.into_iter().filter(|mutant| mutant.gate == "guard").collect();
    let scratch = tempfile::tempdir()?;
    let mut seen = BTreeSet::new();
    let mut passed = Vec::new();
    for mutant in &mutants {
        let path = scratch.path().join(&mutant.file);
        std::fs::write(&path, &mutant.text)?;
        let broken = broken(&path, &mutant.file)?;
        if broken.is_empty() {
            passed.push(&mutant.what);
        }
        seen.extend(broken);
    }
    assert!(passed.is_empty(), "the guard rules let through: {passed:?}");
    for template in TEMPLATES {
        let unseen: Vec<_> = names(template)?.difference(&seen).cloned().collect();
        assert!(unseen.is_empty(), "never seen to fail: {unseen:?}; add a mutant for each");
    }
    Ok(())
}

/// All code that speaks with AWS.
fn code(folder: &Path, text: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            code(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}

/// The tests of the stores run where no IAM is: a call that no role allows would first fail at an admin's.
#[test]
fn the_roles_allow_what_the_code_calls_and_nothing_else() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut text = String::new();
    code(&root.join("store/src/aws"), &mut text)?;
    code(&root.join("api-lambda/src/lambda"), &mut text)?;
    text.push_str(&std::fs::read_to_string(root.join("api-lambda/src/lambda.rs"))?);
    let template = std::fs::read_to_string(folder().join("api.yaml"))?;
    // `- dynamodb:GetItem` and `Action: dynamodb:Scan`
    let granted: BTreeSet<_> = template.lines().filter_map(|line| line.trim().rsplit(' ').next()).collect();
    for (action, calls) in CALLS {
        let called = calls.iter().any(|call| text.contains(call));
        assert_eq!(granted.contains(action), called, "{action}: granted by a role (left), called by the code (right)");
    }
    Ok(())
}
