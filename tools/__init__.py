"""Programs above both libraries; launch/ holds their flags."""
