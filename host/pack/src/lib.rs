//! Build time: lay out, rewrite, measure and sign an image; inspect one.
