//! The untrusted side: load an image, call it, serve its requests.
