package spool

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// childEnv names what a test binary that was started by a test is to do instead of testing.
const childEnv = "UNDERSTUDY_SPOOL_CHILD"

// children are programs that tests kill, starve and trace.
var children = map[string]func(dir string) error{
	"load":    childLoad,
	"once":    childOnce,
	"group":   childGroup,
	"full":    childFull,
	"files":   childFiles,
	"starved": childStarved,
	"scan":    childScan,
	"fill":    childFill,
	"drain":   childDrain,
	"kill":    childKill,
}

func TestMain(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	name, _, _ = strings.Cut(name, "/") // what follows is for the child
	if err := children[name](os.Args[len(os.Args)-1]); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// proofs skips a test that needs root or tools, unless they are required.
func proofs(t testing.TB) {
	t.Helper()
	if os.Getenv("UNDERSTUDY_PROOFS") == "" {
		t.Skip("needs root, strace and mount: set UNDERSTUDY_PROOFS=1")
	}
}
