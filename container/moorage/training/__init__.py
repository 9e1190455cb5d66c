"""What a rank imports: the Run, parallel wrapping, data order, metrics, model export."""
