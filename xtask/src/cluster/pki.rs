//! Certificates, keys and kubeconfigs of one cluster, made anew at each start.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::json;

use super::layout::Layout;

/// A file name, the user that the API server sees, and its group.
const CLIENTS: [(&str, &str, &str); 6] = [
    ("admin", "ckrv-test-admin", "system:masters"),
    ("apiserver-client", "ckrv-test-apiserver", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
    ("dns", "ckrv-test-dns", "system:masters"),
];

/// Everything that lies in `pki/`, and a kubeconfig for each client.
pub fn write(layout: &Layout) -> Result<()> {
    let folder = layout.path("pki");
    std::fs::create_dir_all(&folder)?;
    let issuer = issuer()?;
    std::fs::write(folder.join("ca.crt"), issuer.pem())?;
    let tokens = KeyPair::generate()?;
    secret(&folder.join("service-accounts.key"), &tokens.serialize_pem())?;
    std::fs::write(folder.join("service-accounts.pub"), tokens.public_key_pem())?;
    serving(layout, &issuer)?;
    let node = (layout.node_name(), format!("system:node:{}", layout.node_name()));
    client(layout, &issuer, "kubelet", &node.1, "system:nodes")?;
    for (name, user, group) in CLIENTS {
        client(layout, &issuer, name, user, group)?;
    }
    Ok(())
}

fn issuer() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ckrv test cluster");
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn serving(layout: &Layout, issuer: &CertifiedIssuer<'_, KeyPair>) -> Result<()> {
    let names =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let mut names: Vec<String> = names.map(str::to_owned).into();
    // The host's address too: a test may put a proxy of its own in front of the API server.
    names.extend(["127.0.0.1".to_owned(), layout.node(), layout.host(), layout.service(1)]);
    let mut params = CertificateParams::new(names)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    pair(layout, issuer, "apiserver", &params)
}

fn client(layout: &Layout, issuer: &CertifiedIssuer<'_, KeyPair>, name: &str, user: &str, group: &str) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    pair(layout, issuer, name, &params)?;
    let pki = layout.path("pki");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": { "server": layout.server(), "certificate-authority": pki.join("ca.crt") } }],
        "users": [{ "name": "test", "user": {
            "client-certificate": pki.join(format!("{name}.crt")),
            "client-key": pki.join(format!("{name}.key")),
        } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        "current-context": "test",
    });
    Ok(std::fs::write(layout.kubeconfig(name), config.to_string())?)
}

fn pair(layout: &Layout, issuer: &CertifiedIssuer<'_, KeyPair>, name: &str, params: &CertificateParams) -> Result<()> {
    let key = KeyPair::generate()?;
    let pki = layout.path("pki");
    std::fs::write(pki.join(format!("{name}.crt")), params.signed_by(&key, issuer)?.pem())?;
    secret(&pki.join(format!("{name}.key")), &key.serialize_pem())
}

fn secret(path: &Path, pem: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(std::io::Write::write_all(&mut file, pem.as_bytes())?)
}
