package admin

import (
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/spool"
)

func TestWhatIsRedirectedOutOfQuarantineIsToGo(t *testing.T) {
	f := serve(t, nil)
	env := &mta.Envelope{
		ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "alice", Domain: "example.net"},
		Rcpts:   []mta.Recipient{{Addr: mta.Path{Local: "bob", Domain: "example.org"}, Dest: "example.org"}},
		Verdict: &mta.Verdict{Action: mta.Quarantine, Score: 9},
	}
	if err := f.queue.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	to := mta.Path{Local: "rescue", Domain: "example.com"}
	done, err := f.client.Operate(t.Context(), "redirect", Operation{IDs: []mta.ID{env.ID}, To: to})
	if err != nil || done.Messages != 1 {
		t.Fatal(done, err)
	}
	items, _, err := f.queue.List(t.Context(), spool.Query{Rcpt: "rescue@"})
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	if v := items[0].Envelope.Verdict; items[0].Held || v.Action != mta.Mark || v.Score != 9 {
		t.Errorf("held %v, verdict %+v", items[0].Held, v)
	}
}
