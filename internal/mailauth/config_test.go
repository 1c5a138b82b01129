package mailauth

import "testing"

func TestEveryMistakeOfTheConfigurationIsReported(t *testing.T) {
	cfg := DefaultConfig()
	if f := cfg.Validate(); len(f) != 0 {
		t.Errorf("the defaults: %v", f)
	}
	bad := Config{VoidLookups: -1}
	if f := bad.Validate(); len(f) != 4 {
		t.Errorf("got %v", f)
	}
	if _, err := New(bad, nil); err == nil {
		t.Error("a bad configuration was taken")
	}
}

func TestTheWaysToTheOrganizationalDomainKeepTheirNames(t *testing.T) {
	for _, o := range []OrganizationalDomain{Walk, PublicSuffix} {
		text, err := o.MarshalText()
		back := OrganizationalDomain(9)
		if err != nil || back.UnmarshalText(text) != nil || back != o {
			t.Errorf("%v is read back as %v", o, back)
		}
	}
	var o OrganizationalDomain
	if o.UnmarshalText([]byte("psl")) == nil {
		t.Error("an unknown way was read")
	}
}
