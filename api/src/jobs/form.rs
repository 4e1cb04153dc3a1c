//! `multipart/form-data`: the image in the field `image`, options in the others.

use axum::http::{HeaderMap, header};
use bytes::Bytes;

use super::options::Options;
use crate::error::ApiError;

/// Most fields that a form may have.
const FIELDS_MAX: usize = 64;

/// Whether the body is a form; everything else counts as an image, whatever its content type.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|value| value.to_ascii_lowercase().starts_with("multipart/form-data"))
}

/// The boundary of a form; `None` when the body is not a form.
pub(super) fn boundary(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    match content_type(headers).filter(|_| is_form(headers)) {
        Some(value) => multer::parse_boundary(value).map(Some).map_err(|error| ApiError::Form(error.to_string())),
        None => Ok(None),
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

/// Takes the image out of a form and reads the other fields as options.
pub(super) async fn read(body: Bytes, boundary: String, options: &mut Options) -> Result<Bytes, ApiError> {
    let broken = |error: multer::Error| ApiError::Form(error.to_string());
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(body)]);
    let mut form = multer::Multipart::new(chunks, boundary);
    let mut image = None;
    let mut fields = 0;
    while let Some(field) = form.next_field().await.map_err(broken)? {
        fields += 1;
        if fields > FIELDS_MAX {
            return Err(ApiError::Form(format!("more than {FIELDS_MAX} fields")));
        }
        let name = field.name().unwrap_or_default().to_owned();
        if name != "image" {
            if field.file_name().is_some_and(|name| !name.is_empty()) {
                let problem = format!("the file is in the field `{name}`; send it in the field `image`");
                return Err(ApiError::Form(problem));
            }
            let value = field.text().await.map_err(broken)?;
            // Browsers send every field of a form, even those that were left empty.
            if !value.is_empty() {
                options.set(&name, &value)?;
            }
        } else if image.replace(field.bytes().await.map_err(broken)?).is_some() {
            return Err(ApiError::Form("one image a request: there is more than one field `image`".into()));
        }
    }
    image.ok_or_else(|| ApiError::Form("the field `image` is missing".into()))
}
