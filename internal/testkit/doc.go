// Package testkit is for tests only: a scripted SMTP and LMTP primary, certificates, and a proxy that makes a way long.
package testkit
