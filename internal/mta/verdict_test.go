package mta

import "testing"

func TestTheDecidingFindingIsWhatTheSenderIsTold(t *testing.T) {
	listed := Finding{Name: "dnsbl:a", Text: "listed", Weight: 9, Status: "7.1"}
	spoofed := Finding{Name: "spoof", Text: "spoofed", Action: Reject, Status: "7.25"}
	good := Finding{Name: "dnswl:a", Weight: -5}
	tests := []struct {
		name string
		v    Verdict
		want string
	}{
		{"taken", Verdict{Action: Mark, Findings: []Finding{listed}}, ""},
		{"the score decides", Verdict{Action: Reject, Findings: []Finding{good, listed}}, "550 5.7.1 listed"},
		{"what asks for more goes before what weighs more", Verdict{Action: Reject, Findings: []Finding{listed, spoofed}}, "550 5.7.25 spoofed"},
		{"deferred", Verdict{Action: Defer, Findings: []Finding{listed}}, "451 4.7.1 listed"},
		{"nothing stands against it", Verdict{Action: Reject, Findings: []Finding{good}}, "550 5.7.1 the message is refused by policy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if r := tt.v.Reply(); r != nil {
				got = r.String()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestActionsKeepTheirNames(t *testing.T) {
	for a := Accept; a <= Reject; a++ {
		text, err := a.MarshalText()
		var back Action
		if err != nil || back.UnmarshalText(text) != nil || back != a {
			t.Errorf("%v is read back as %v", a, back)
		}
	}
	var a Action
	if a.UnmarshalText([]byte("drop")) == nil {
		t.Error("an unknown action was read")
	}
}

func TestOnlyAProvedSenderIsAuthentic(t *testing.T) {
	pass, fail := AuthResult{Result: "pass"}, AuthResult{Result: "fail"}
	tests := []struct {
		name string
		v    *Verdict
		want bool
	}{
		{"nobody looked", nil, false},
		{"nothing found", &Verdict{}, false},
		{"SPF", &Verdict{Auth: Auth{SPF: pass}}, true},
		{"an aligned signature", &Verdict{Auth: Auth{Aligned: true}}, true},
		{"DMARC fails", &Verdict{Auth: Auth{SPF: pass, DMARC: fail}}, false},
	}
	for _, tt := range tests {
		if got := tt.v.Authentic(); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}
