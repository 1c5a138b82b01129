package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/internal/admin"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// TestScripts plays testdata/script: the program as an operator types it. In a script:
//
//	$SMTP, $PRIMARY          free addresses: for inbound.listen, and the primary's
//	primary start | stop     the primary's own life
//	primary got N            wait until it took N messages in all
//	primary xclient          it grants XCLIENT from its next start on
//	primary says STEP REPLY  what it answers at a step (testkit.Step); without REPLY the usual
//	$DNS                     a resolver that knows example.org (MX 10 mx1, 20 mx2), example.com (MX 10 mx2), example.net (no MX)
//	ready                    wait until `understudy serve`, started in the background, is ready
//	mail N [recipient]       give it N messages, each must be answered 250
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			p := away(t)
			e.Values[primaryKey{}] = p
			e.Setenv("PRIMARY", p.Addr())
			e.Setenv("SMTP", peer.FreeAddr(t))
			e.Setenv("DNS", dnstest.New(t, dnstest.Zones{
				"example.org": {"MX 10 mx1.example.org.", "MX 20 mx2.example.org."}, "example.com": {"MX 10 mx2.example.org."},
				"example.net": {"A 192.0.2.3"}, "mx1.example.org": {"A 127.0.0.1"}, "mx2.example.org": {"A 192.0.2.2"},
			}).Addr())
			e.Setenv("UNDERSTUDY_CONFIG", filepath.Join(e.WorkDir, "understudy.yaml"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"primary": scriptPrimary, "ready": scriptReady, "mail": scriptMail, "expand": scriptExpand,
		},
	})
}

type primaryKey struct{}

func scriptPrimary(ts *testscript.TestScript, neg bool, args []string) {
	p := ts.Value(primaryKey{}).(*testkit.Primary)
	switch {
	case neg || len(args) == 0:
		ts.Fatalf("usage: primary start | stop | got N")
	case args[0] == "start":
		p.Start()
	case args[0] == "stop":
		p.Stop()
	case args[0] == "got" && len(args) == 2:
		n := number(ts, args[1])
		wait(ts, "the primary took "+args[1], func() bool { return p.Accepted() >= n })
		if p.Accepted() != n {
			ts.Fatalf("the primary took %d messages, want %d", p.Accepted(), n)
		}
	case args[0] == "xclient":
		p.XCLIENT = true
	case args[0] == "says" && len(args) == 2:
		p.SetScript(nil)
	case args[0] == "says" && len(args) == 3:
		p.On(testkit.Step(args[1]), testkit.Say(args[2]))
	default:
		ts.Fatalf("usage: primary start | stop | got N | xclient | says STEP [REPLY]")
	}
}

func scriptReady(ts *testscript.TestScript, neg bool, args []string) {
	c := admin.NewClient(ts.MkAbs("admin.sock"), "")
	wait(ts, "the server is ready", func() bool {
		st, err := c.Status(context.Background())
		return err == nil && st.Ready
	})
}

func scriptMail(ts *testscript.TestScript, neg bool, args []string) {
	taken, err := send(ts.Getenv("SMTP"), 0, number(ts, args[0]))
	ts.Logf("%d messages taken", len(taken))
	if (err != nil) != neg {
		ts.Fatalf("mail: %v", err)
	}
}

// scriptExpand puts the values of $PRIMARY, $SMTP and $DNS into files.
func scriptExpand(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

func wait(ts *testscript.TestScript, what string, holds func() bool) {
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("waited in vain until %s", what)
		}
	}
}

func number(ts *testscript.TestScript, s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			ts.Fatalf("%q is not a number", s)
		}
		n = n*10 + int(c-'0')
	}
	return n
}
