package main

import (
	"bytes"
	"testing"

	"understudy/internal/admin"
	"understudy/internal/mta"
)

func TestParityIsShownWithItsIntervalsAndReasons(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	k := admin.ParityKind{
		Kind: mta.PairShadow, Messages: 53, Bypass: admin.ParityRate{N: 1, Of: 50, Rate: 0.02, Low: 0.0035, High: 0.105},
		TheyRefuse: []admin.ParityReason{{Text: "5.7.1 spam", Count: 12, IDs: []string{"A", "B", "C", "D"}}, {Text: "550", Count: 1}},
	}
	k.Matrix[mta.Accept] = [...]int64{49, 1, 3, 0}
	r := admin.ParityReport{From: "2026-11-17", To: "2026-11-23"}
	if err := a.printParity(r); err != nil {
		t.Fatal(err)
	}
	if want := "nothing was compared from 2026-11-17 to 2026-11-23\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
	out.Reset()
	r.Domains = []admin.ParityDomain{{Domain: "example.org", Kinds: []admin.ParityKind{k}}}
	if err := a.printParity(r); err != nil {
		t.Fatal(err)
	}
	want := `example.org, 2026-11-17 to 2026-11-23

shadow: our verdict beside the primary while it was up, 53 messages
  OURS        ACCEPTED  REFUSED  NO RECIPIENT  DEFERRED
  accept      49        1        3             0
  mark        0         0        0             0
  quarantine  0         0        0             0
  defer       0         0        0             0
  reject      0         0        0             0
  bypass rate:     2.00 % (0.35 to 10.50 %), 1 of 50
  over-block rate: nothing to compare
  the primary refused what we took:
    12  5.7.1 spam  B C D
    1   550
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
