// Package dnsbl asks DNS lists of clients (RFC 5782) and promises that trouble never speaks against a client: only an
// answer within 127.0.0.0/8 other than 127.0.0.1, of a list that passes its self-test, counts. A list that answers with
// its own error code, with addresses from elsewhere, or lists what nobody can list, is left alone and an operator is
// told.
//
// Entries are written as postscreen's: "zen.example.org=127.0.0.[2..11]*3" (pattern.go). What is believed of a list is a
// value with pure transitions (belief.go). Run owns one goroutine, which tests the lists one after the other; a check
// starts one for each list, at most maxAsking in all, and awaits them.
package dnsbl
