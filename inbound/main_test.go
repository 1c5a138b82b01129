package inbound

import (
	"fmt"
	"os"
	"testing"
)

// sharedDir lives as long as the test binary.
var sharedDir string

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		serveForBenchmark()
		return
	}
	if os.Getenv(asActivated) != "" {
		printActivated()
		return
	}
	dir, err := os.MkdirTemp("", "understudy-inbound-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sharedDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}
