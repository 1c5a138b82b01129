package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"understudy/internal/testkit"
)

// proofs skips a test that needs root, strace or mount, unless they are required.
func proofs(t testing.TB) {
	t.Helper()
	if os.Getenv("UNDERSTUDY_PROOFS") == "" {
		t.Skip("needs root, strace and mount: set UNDERSTUDY_PROOFS=1")
	}
}

// Messages of all kinds that the spool knows: small ones, ones that just fit into a journal, ones in a file of their own
// from memory, and ones that waited in a file before.
var sizes = [...]int{300, 4000, 300, 20000, 300, 120 << 10, 4000, 150 << 10, 300, 400 << 10}

// sized is a numbered message of one of these sizes, in which no piece is like another, here or in another message.
func sized(n int) []byte {
	b := undotted(n)
	for at := 0; len(b) < sizes[n%len(sizes)]; at++ {
		b = fmt.Appendf(b, "%06d %06d %016x\r\n", n, at, uint64(n*1000003+at)*0x9e3779b97f4a7c15)
	}
	return b
}

// sizedFrom names a message by its reverse-path, which lies in its record wherever its content does.
func sizedFrom(n int) string { return fmt.Sprintf("sender-%06d@example.net", n) }

// book is what clients were answered.
type book struct {
	mu      sync.Mutex
	next    int
	taken   map[int]string // what got a 250, and the ID that came with it
	refused map[int]string // what got anything else
}

func newBook() *book { return &book{taken: map[int]string{}, refused: map[int]string{}} }

func (b *book) count() (taken, refused int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.taken), len(b.refused)
}

func (b *book) number() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	return b.next - 1
}

func (b *book) note(n int, answer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id, ok := strings.CutPrefix(answer, "250 2.0.0 ok, queued as "); ok {
		b.taken[n] = id
		return
	}
	b.refused[n] = answer
}

// give has clients give sized messages, each over a connection of its own, until an answer tells it to stop or the
// connection breaks. After a refusal a client begins a connection anew.
func (b *book) give(addr string, clients int, goOn func(n int, answer string) bool) {
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for on := true; on; {
				c, err := call(addr, "")
				if err != nil {
					return
				}
				on = b.giveOver(c, goOn)
				c.Close()
			}
		})
	}
	wg.Wait()
}

func (b *book) giveOver(c *client, goOn func(n int, answer string) bool) bool {
	for {
		n := b.number()
		answer, err := c.give(sizedFrom(n), "bob@example.org", sized(n))
		if err != nil {
			return false
		}
		b.note(n, answer)
		if !goOn(n, answer) {
			return false
		}
		if answer[0] != '2' {
			return true
		}
	}
}

// arrived holds what a primary has against what was promised: every message with a 250 is there, as it was sent but for
// our fields. It returns how many copies came beyond the first.
func (b *book) arrived(t *testing.T, p *testkit.Primary) (doubles int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	copies := map[int]int{}
	for _, m := range p.Messages() {
		var n int
		if _, err := fmt.Sscanf(m.From, "sender-%06d@example.net", &n); err != nil {
			t.Fatalf("a message from %q, whom nobody is", m.From)
		}
		rest, traced := untraced(m.Content)
		if !traced || !bytes.Equal(rest, sized(n)) {
			t.Errorf("message %d was changed on its way: %d octets (our fields %v), %d were sent\n%.300q", n, len(rest), traced, len(sized(n)), rest)
		}
		copies[n]++
		if copies[n] > 1 {
			doubles++
		}
	}
	for n, id := range b.taken {
		if copies[n] == 0 {
			t.Errorf("message %d got a 250 as %s and never arrived", n, id)
		}
	}
	return doubles
}
