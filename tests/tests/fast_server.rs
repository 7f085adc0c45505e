//! The server and the user of the harness, with the real ckrv. Not tested here: jobs.

use anyhow::Result;
use ckrv_tests::server::{Server, Setup};
use ckrv_tests::user::User;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_logs_in_through_the_activation_page() -> Result<()> {
    let server = Server::start(Setup::unsandboxed()).await?;
    let user = User::of(&server)?;
    user.login(&server).await?;
    user.run(user.home(), &["cloud", "whoami"]).await?.ok()?;
    let tokens = server.login().await?;
    assert!(!tokens.access.is_empty() && !tokens.refresh.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_comes_back_at_its_address() -> Result<()> {
    let mut server = Server::start(Setup::unsandboxed()).await?;
    let (url, pid) = (server.url().to_owned(), server.pid());
    server.kill().await?;
    server.start_again().await?;
    assert_eq!(server.url(), url);
    assert_ne!(server.pid(), pid);
    server.login().await?;
    server.stop().await
}
