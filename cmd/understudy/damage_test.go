package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/internal/testkit"
)

// One octet of a spooled message changes on the disk.
func TestADamagedMessageIsNamedHeldAndNeverDelivered(t *testing.T) {
	p := away(t)
	s := newServer(t, acceptAll(p))
	s.start()
	large := func(n int) []byte {
		return fmt.Appendf(nil, "Subject: %d\r\n\r\n%s", n, bytes.Repeat([]byte("0123456789abcdef\r\n"), 12<<10))
	}
	for n := range 3 {
		if answer := mail(t, s.smtp, "", "bob@example.org", large(n)); !strings.HasPrefix(answer, "250") {
			t.Fatal(answer)
		}
	}
	s.stop()
	files, err := filepath.Glob(filepath.Join(s.dir, "spool", "bodies", "*"))
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(filepath.Base(files[0]), "-")

	s.start()
	out, err := s.run("spool", "verify")
	if err == nil || !strings.Contains(out, id) || !strings.Contains(out, "1 damage") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := s.run("queue", "show", id); err != nil || !strings.Contains(out, "held") {
		t.Errorf("show: %v\n%s", err, out)
	}
	s.stop()
	s.start() // what is damaged stays known, and is an alarm from the start on
	s.until("the alarm is on", func() bool {
		out, err := s.run("alarms")
		return err == nil && strings.Contains(out, "are damaged and held")
	})
	p.Start()
	p.WaitMessages(context.Background(), 2)
	s.until("nothing waits but the damaged one", func() bool { return s.waiting() == 0 })
	if n := len(p.Messages()); n != 2 || s.held() != 1 {
		t.Errorf("%d delivered, %d held", n, s.held())
	}
	for _, m := range p.Messages() {
		if !containsOneOf(m, large(0), large(1), large(2)) {
			t.Errorf("delivered %d octets that nobody sent", len(m.Content))
		}
	}
	s.stop()
}

func containsOneOf(m testkit.Message, contents ...[]byte) bool {
	for _, c := range contents {
		if bytes.HasSuffix(m.Content, c) {
			return true
		}
	}
	return false
}
