// Package configs holds the configuration files that come with Understudy: the annotated reference, whose every value
// is the default, and the configuration that the program runs with when it is given none.
package configs

import _ "embed"

// Reference is understudy.yaml: every key with its default and its manual.
//
//go:embed understudy.yaml
var Reference []byte

// Default is default.yaml: a demonstration on loopback that needs neither root nor any other file. Relative paths in
// it are meant from the current directory.
//
//go:embed default.yaml
var Default []byte
