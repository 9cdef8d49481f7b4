//! Dockerfile and .dockerignore as values: lexer, syntax tree, expansion, lints
