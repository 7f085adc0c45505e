//! A failed call, as text. The SDK's error values can hold a raw answer, and with it a secret, so they are not kept.

use std::error::Error;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{StoreError, chain};

/// What failed and why, without the answer itself.
pub(super) fn failure<E: Error + 'static>(context: impl Into<String>, error: &SdkError<E>) -> StoreError {
    StoreError::backend(context, chain(error))
}

/// The service's name for the error, where the service answered with one.
pub(super) fn code<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<&str> {
    error.as_service_error().and_then(ProvideErrorMetadata::code)
}

pub(super) fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
