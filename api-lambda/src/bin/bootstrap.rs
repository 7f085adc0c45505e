//! The API as a Lambda function; `bootstrap` is the name that Lambda's runtime starts.

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_http::Error> {
    ckrv_api::lambda::run().await
}
